"""Every core against its naive float64 reference on random inputs: shapes, odd counts, one token, all tokens, ties.

Inputs with ties hold numbers whose sums and products are exact, so that equal means equal. Random inputs are compared
in float64, where no rounding can turn a margin around.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity import references
from tests.parity.replay import Array, Cores
from tokenprune.baselines import vtw
from tokenprune.baselines.prumerge import raster_centres

CORES = Cores(torch.float64)
SEEDS = pytest.mark.parametrize("seed", range(5))


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng([20, seed])


def attention(rng: np.random.Generator, *shape: int) -> Array:
    raw = np.exp(2 * rng.normal(size=shape))
    return np.asarray(raw / raw.sum(-1, keepdims=True))


def coarse(rng: np.random.Generator, *shape: int) -> Array:
    """Multiples of 1/16: many ties, exact sums."""
    return np.asarray(rng.integers(0, 5, size=shape) / 16)


def signs(rng: np.random.Generator, *shape: int) -> Array:
    """Rows of plus and minus one; with 4 or 16 columns their norms and cosines are exact, and many rows are equal."""
    return np.asarray(rng.choice([-1.0, 1.0], size=shape))


def clusters(rng: np.random.Generator, n: int, d: int) -> Array:
    """Points around a few centres, so that likeness differs from pair to pair."""
    centres = rng.normal(size=(max(1, n // 6), d))
    return np.asarray(centres[rng.integers(0, len(centres), size=n)] + 0.4 * rng.normal(size=(n, d)))


def same(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Integers and masks exactly, floats within the tolerance, sequences entry by entry."""
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other, tolerance)
    elif expected is None:
        assert got is None
    elif np.asarray(expected).dtype.kind == "f":
        np.testing.assert_allclose(np.asarray(got), expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(np.asarray(got), expected)


def agree(name: str, *args: Any, tolerance: float = 1e-9, **named: Any) -> None:
    same(getattr(CORES, name)(*args, **named), getattr(references, name)(*args, **named), tolerance)


@SEEDS
@pytest.mark.parametrize("official", [False, True])
def test_divprune(seed: int, official: bool) -> None:
    rng = draw(seed)
    for n, d, keep in ((40, 8, 9), (37, 5, 1), (12, 3, 12), (2, 4, 1)):
        agree("divprune", clusters(rng, n, d), keep, official=official)
    agree("divprune", signs(rng, 24, 4), 12, official=official)  # at most 16 different rows
    agree("divprune", np.ones((5, 4)), 3, official=official)


def test_divprune_with_zero_rows_picks_each_once() -> None:
    x = np.concatenate([np.zeros((3, 4)), signs(draw(0), 6, 4)])
    agree("divprune", x, 9)


def test_divprune_official_repeats_duplicates() -> None:
    x = np.ones((10, 4))
    assert CORES.divprune(x, 5, official=True).tolist() == [0, 0, 0, 0, 0]
    assert CORES.divprune(x, 5).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(CORES.divprune(np.zeros((4, 3)) + np.eye(4, 3), 4, official=True)).size < 4


@SEEDS
@pytest.mark.parametrize("official", [False, True])
def test_cdpruner(seed: int, official: bool) -> None:
    rng = draw(seed)
    for tiles, n, d, segments, keep in ((1, 30, 40, 1, 8), (3, 25, 30, 2, 5), (1, 6, 9, 1, 6), (2, 9, 9, 3, 1)):
        features, embeds = rng.normal(size=(tiles, n, d)), rng.normal(size=(tiles, n, 6))
        text = rng.normal(size=(segments, 6))
        agree("cdpruner_relevance", embeds, text, official=official)
        agree("cdpruner", features, embeds, text, keep, official=official)


def test_cdpruner_tiles_depend_on_one_another_in_the_official_rule_alone() -> None:
    changed = 0
    for seed in range(20):
        rng = draw(seed)
        features, embeds, text = rng.normal(size=(2, 40, 48)), rng.normal(size=(2, 40, 6)), rng.normal(size=(1, 6))
        alone = np.concatenate([CORES.cdpruner(features[[t]], embeds[[t]], text, 8) for t in range(2)])
        np.testing.assert_array_equal(CORES.cdpruner(features, embeds, text, 8), alone)
        changed += not np.array_equal(CORES.cdpruner(features, embeds, text, 8, official=True), alone)
    assert changed > 0


def test_cdpruner_keeps_the_budget_where_the_program_does_not() -> None:
    rng = draw(0)
    features, embeds, text = rng.normal(size=(1, 60, 16)), rng.normal(size=(1, 60, 6)), rng.normal(size=(1, 6))
    low_rank = CORES.cdpruner(features, embeds, text, 40)[0]
    assert len(set(low_rank.tolist())) == 40
    np.testing.assert_array_equal(low_rank[:16], references.cdpruner(features, embeds, text, 16)[0])
    assert len(set(CORES.cdpruner(features, embeds, text, 40, official=True)[0].tolist())) < 40
    constant = np.ones((1, 60, 6))
    assert len(set(CORES.cdpruner(features, constant, text, 12, official=True)[0].tolist())) == 2
    assert len(set(CORES.cdpruner(features, constant, text, 12)[0].tolist())) == 12


@SEEDS
def test_attention_rankings(seed: int) -> None:
    rng = draw(seed)
    for weights in (attention(rng, 3, 4, 25), coarse(rng, 2, 4, 25), np.full((1, 2, 6), 0.25), attention(rng, 1, 1, 1)):
        n = weights.shape[-1]
        for keep in {1, n // 3 + 1, n}:
            agree("fastervlm", weights, keep)
            agree("hired", weights[0], keep)
            agree("fastv", weights[0], image_start=0, n_image=n, keep=keep)
    row = attention(rng, 4, 40)
    agree("fastv", row, image_start=7, n_image=21, keep=8)
    kept = np.array([0, 3, 20])
    agree("fastv_keep_index", kept, image_start=7, n_image=21, seq_len=40)


@SEEDS
def test_vispruner(seed: int) -> None:
    rng = draw(seed)
    # 37 - 5 and 30 - 3 left over: even and odd remainders; the last cases drop more than half of a small remainder.
    for n, keep, ratio in (
        (37, 11, 0.5),
        (30, 7, 0.5),
        (30, 8, 0.75),
        (12, 9, 1.0),
        (12, 5, 0.0),
        (9, 2, 0.5),
        (4, 4, 0.5),
    ):
        agree("vispruner", attention(rng, 2, 3, n), rng.normal(size=(2, n, 5)), keep, important_ratio=ratio)
        agree("vispruner", coarse(rng, 1, 4, n), signs(rng, 1, n, 4), keep, important_ratio=ratio)


@SEEDS
def test_visionzip(seed: int) -> None:
    rng = draw(seed)
    for n, dominant, contextual in (
        (36, 9, 5),
        (25, 1, 3),
        (25, 20, 6),
        (10, 10, 4),
        (10, 11, 2),
        (16, 4, 0),
        (16, 5, 12),
    ):
        for batch in (1, 3):
            states, keys = rng.normal(size=(batch, n + 1, 6)), rng.normal(size=(batch, n + 1, 5))
            agree("visionzip", attention(rng, batch, 4, n), states, keys, dominant, contextual)
        agree("visionzip", coarse(rng, 1, 4, n), states[:1], signs(rng, 1, n + 1, 4), dominant, contextual)


def prumerge_inputs(rng: np.random.Generator, batch: int, n: int) -> tuple[Array, Array, Array]:
    """A CLS query that some keys answer strongly, so that there are outliers."""
    keys = rng.normal(size=(batch, n + 1, 8))
    query = rng.normal(size=(batch, 8))
    strong = rng.random(size=(batch, n + 1)) < 0.1
    keys += strong[..., None] * 2 * query[:, None]
    return rng.normal(size=(batch, n + 1, 5)), query, keys


@SEEDS
def test_prumerge(seed: int) -> None:
    rng = draw(seed)
    for batch, n in ((1, 64), (3, 49), (1, 33), (2, 20)):
        inputs = prumerge_inputs(rng, batch, n)
        for plus in (False, True):
            agree("prumerge", *inputs, plus=plus)
            agree("prumerge", *inputs, ratio=0.125, plus=plus)
        agree("prumerge", *inputs, ratio=1.0)
        if n > 32:
            agree("prumerge", *inputs, official=True)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("n", "ratio"), [(576, 0.125), (576, 0.25), (576, 0.0625), (575, 0.2)])
def test_prumerge_plus_with_a_fixed_share_as_the_program_does_it(n: int, ratio: float, batch: int) -> None:
    inputs = prumerge_inputs(draw(batch), batch, n)
    agree("prumerge", *inputs, ratio=ratio, plus=True, official=True)
    repeated = CORES.prumerge(*inputs, ratio=ratio, plus=True, official=True)[0][1].tolist()
    assert len(set(repeated)) < len(repeated)  # the program repeats some
    once = CORES.prumerge(*inputs, ratio=ratio, plus=True)[0][1].tolist()
    assert len(set(once)) == len(once)


def test_a_repeated_centre_of_the_program_is_a_neighbour_of_itself() -> None:
    """Orthogonal keys, equal weights, patch 1 twice: of the others the first in the list, which misses patch 0."""
    features, weights = 2.0 ** np.arange(6)[:, None], np.full(6, 0.5)
    out = CORES.merge_neighbours(features, np.eye(6), weights, np.array([1, 4, 1]), neighbours=2, official=True)
    # The list: 1, 4, 1, then 2, 3, 5 (0 is missed). Of each entry: itself again if it repeats, then the earliest.
    assert out.flatten().tolist() == [2 + 0.5 * (2 + 16), 16 + 0.5 * (2 + 2), 2 + 0.5 * (2 + 16), 0.5 * (4 + 8 + 32)]
    out = CORES.merge_neighbours(features, np.eye(6), weights, np.array([1, 4]), neighbours=2)
    assert out.flatten().tolist() == [2 + 0.5 * (1 + 4), 16 + 0.5 * (1 + 2), 0.5 * (1 + 4 + 8 + 32)]


@pytest.mark.parametrize(
    ("n", "batch", "named", "words"),
    [
        (32, 1, {}, ["32 patches", "32 neighbours", "33"]),
        (32, 1, {"ratio": 0.5}, ["32 patches", "32 neighbours"]),
        (32, 3, {}, ["32 patches"]),
        (20, 1, {"plus": True}, ["20 patches", "raster"]),
        (560, 1, {"plus": True, "ratio": 0.125}, ["560 patches", "raster"]),
        (600, 1, {"plus": True, "ratio": 0.125}, ["75", "72", "ratio"]),
        (576, 1, {"plus": True, "ratio": 0.3}, ["172", "192", "ratio"]),
        (576, 2, {"plus": True}, ["one image", "2"]),
    ],
)
def test_where_the_program_of_prumerge_stops(n: int, batch: int, named: dict[str, Any], words: list[str]) -> None:
    inputs = prumerge_inputs(draw(1), batch, n)
    with pytest.raises(ValueError, match="."):
        references.prumerge(*inputs, official=True, **named)
    with pytest.raises(ValueError, match="leave official out") as caught:
        CORES.prumerge(*inputs, official=True, **named)
    for word in ["prumerge", *words]:
        assert word in str(caught.value)
    agree("prumerge", *inputs, **named)


def test_the_raster_of_prumerges_program_never_stands_still() -> None:
    with pytest.raises(ValueError, match=r"share of 0\.4 .* step of 0"):
        raster_centres(576, 0.4, fixed=False, official=True)
    assert raster_centres(576, 0.4, fixed=False) == list(range(576))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n", [576, 600])
def test_prumerge_plus_as_the_program_counts_outliers(seed: int, n: int) -> None:
    agree("prumerge", *prumerge_inputs(draw(seed), 1, n), plus=True, official=True)


def test_prumerge_without_outliers_keeps_a_centre() -> None:
    states, query, keys = draw(0).normal(size=(1, 41, 5)), np.ones((1, 4)), np.ones((1, 41, 4))
    agree("prumerge", states, query, keys)
    agree("prumerge", states, query, keys, plus=True)
    assert len(CORES.prumerge(states, query, keys)[0][1]) == 1
    with pytest.raises(ZeroDivisionError):
        CORES.prumerge(states, query, keys, plus=True, official=True)


@SEEDS
def test_hired_next(seed: int) -> None:
    rng = draw(seed)
    for grid_h, grid_w, n in ((2, 2, 64), (1, 3, 36), (3, 1, 36), (1, 2, 16), (2, 3, 36)):
        tiles = grid_h * grid_w + 1
        for rate, alpha in ((0.2, 0.5), (0.1, 0.9), (1.0, 0.2), (0.5, 0.0), (0.3, 1.0)):
            for official in (False, True):
                shape = {"rate": rate, "alpha": alpha, "grid_h": grid_h, "grid_w": grid_w, "official": official}
                agree("hired_next", attention(rng, tiles, 3, n), attention(rng, 3, n), **shape)
                agree("hired_next", coarse(rng, tiles, 4, n), coarse(rng, 4, n), **shape)


@SEEDS
def test_trim(seed: int) -> None:
    rng = draw(seed)
    for n in (60, 41, 3, 1):
        patches, text, features = rng.normal(size=(n, 6)), rng.normal(size=6), rng.normal(size=(n, 4))
        for ratio in (None, 0.01, 0.3, 1.0):
            agree("trim", patches, text, ratio=ratio)
            agree("trim", patches, text, ratio=ratio, official=True)
            agree("with_mean_of_rest", features, references.trim(patches, text, ratio=ratio)[0])
    agree("trim", signs(rng, 20, 4), np.array([1.0, 0, 0, 0]), ratio=0.3)
    agree("trim", np.ones((8, 3)), np.ones(3))


@SEEDS
def test_pyramiddrop(seed: int) -> None:
    rng = draw(seed)
    for heads, key_heads, length, start, n in (
        (4, 4, 40, 7, 25),
        (4, 2, 33, 0, 20),
        (2, 1, 20, 5, 15),
        (1, 1, 3, 1, 1),
    ):
        query, keys = rng.normal(size=(heads, 8)), rng.normal(size=(key_heads, length, 8))
        agree("pyramiddrop_score", query, keys, image_start=start, n_image=n)
        for keep in {1, (n + 1) // 2, n}:
            agree("pyramiddrop", query, keys, image_start=start, n_image=n, keep=keep)
    agree("pyramiddrop", np.ones((2, 4)), np.ones((2, 12, 4)), image_start=2, n_image=8, keep=3)


@SEEDS
@pytest.mark.parametrize("official", [False, True])
def test_dart(seed: int, official: bool) -> None:
    rng = draw(seed)
    for length, start, n, q, image, text in (
        (90, 12, 60, 5, 4, 4),
        (70, 0, 50, 3, 2, 6),
        (40, 5, 25, 1, 1, 0),
        (30, 3, 20, 0, 3, 2),
    ):
        hidden, keys = clusters(rng, length, 8), rng.normal(size=(2, length, 6))
        shape = {"image_start": start, "n_image": n, "per_pivot": q, "pivot_image": image, "pivot_text": text}
        agree("dart", hidden, keys, **shape, official=official)
    # Less text than text pivots, and more to claim than there is.
    hidden, keys = clusters(rng, 12, 8), rng.normal(size=(2, 12, 6))
    agree("dart", hidden, keys, image_start=0, n_image=10, per_pivot=3, official=official)


def test_dart_depends_on_the_place_of_the_image_in_the_official_rule_alone() -> None:
    rng = draw(1)
    hidden, keys = clusters(rng, 120, 8), rng.normal(size=(2, 120, 6))
    answers: dict[bool, set[tuple[int, ...]]] = {False: set(), True: set()}
    for pad in range(24):
        shifted = np.concatenate([rng.normal(size=(pad, 8)), hidden])
        longer = np.concatenate([np.zeros((2, pad, 6)), keys], axis=1)
        for official, seen in answers.items():
            kept = CORES.dart(shifted, longer, image_start=10 + pad, n_image=90, per_pivot=4, official=official)[0]
            seen.add(tuple(kept.tolist()))
    assert len(answers[False]) == 1
    assert len(answers[True]) > 1


@SEEDS
def test_sparsevlm(seed: int) -> None:
    rng = draw(seed)
    for n, m in ((40, 9), (15, 1), (7, 30)):
        visual, text = 0.3 * rng.normal(size=(n, 8)), rng.normal(size=(m, 8))
        agree("sparsevlm_raters", visual, text)
        for keep in (1, n // 2, n - 1, n + 5):
            agree("sparsevlm_stage", attention(rng, 3, n), keep)
            agree("sparsevlm_stage", coarse(rng, 4, n), keep)
    agree("sparsevlm_raters", rng.normal(size=(5, 4)), np.ones((3, 4)))  # equal scores: all rate


@SEEDS
def test_sparsevlm_recycling(seed: int) -> None:
    rng = draw(seed)
    for m in (1, 2, 9, 10, 35):
        agree("recycle", clusters(rng, m, 6))
        agree("recycle", signs(rng, m, 4))  # equal points: densities tie, the better scored is the denser
    agree("recycle", clusters(rng, 12, 3), clusters=2)  # nearest pairs tie by construction
    agree("recycle", np.ones((15, 4)))


def test_sparsevlm_noise_stands_in_for_the_tie_rule() -> None:
    """Two clusters: nearest pairs tie in density, and the program's noise decides which of them is a centre."""
    changed = 0
    for seed in range(10):
        rng = draw(seed)
        features = rng.normal(size=(16, 8))
        quiet = CORES.recycle(features, clusters=2, noise=-1e-12 * np.arange(16.0))
        same(quiet, CORES.recycle(features, clusters=2), tolerance=1e-6)  # the rule: the better scored is the denser
        noisy = [CORES.recycle(features, clusters=2, noise=1e-6 * rng.random(16)) for _ in range(8)]
        changed += any(not np.allclose(run, quiet) for run in noisy)
    assert changed > 0


def test_vtw_takes_the_first_layer_that_changes_little() -> None:
    rng = draw(0)
    full = rng.normal(size=(3, 20))
    withdrawn = [full + scale * rng.normal(size=full.shape) for scale in (1.0, 0.5, 0.01, 0.1)]
    divergences = [float(CORES.withdrawal_kl(full, logits)) for logits in withdrawn]
    naive = []
    for logits in withdrawn:
        pairs = [(references.softmax(a), references.softmax(b)) for a, b in zip(full, logits, strict=True)]
        naive.append(np.mean([np.sum(p * np.log(p / q)) for p, q in pairs]))
    np.testing.assert_allclose(divergences, naive, rtol=1e-9)
    assert vtw.withdrawal_layer(divergences, 0.01) == 7
    with pytest.raises(ValueError, match="no layer reaches eta=0"):
        vtw.withdrawal_layer(divergences, 0.0)


def test_sparsevlm_stage_merges_what_it_recycles() -> None:
    rng = draw(0)
    weights, features = attention(rng, 3, 50), rng.normal(size=(50, 6))
    _, recycled, merged, _ = CORES.sparsevlm_stage(weights, 20, features=features)
    same(merged, references.recycle(features[recycled]))


@SEEDS
def test_fitprune(seed: int) -> None:
    rng = draw(seed)
    for heads, n, m in ((4, 30, 7), (1, 9, 1), (2, 1, 3)):
        for delete in {0, n // 2, n - 1}:
            for weights in (attention(rng, heads, n + m, n), coarse(rng, heads, n + m, n)):
                agree("fitprune_scores", weights, n_image=n)
                agree("fitprune", weights, n_image=n, delete=delete)


@SEEDS
def test_mustdrop(seed: int) -> None:
    rng = draw(seed)
    for n, m in ((40, 9), (15, 1), (1, 3)):
        for global_thr, individual_thr in ((0.02, 0.05), (1.0, 0.0), (0.0, 1.0), (1.1, 2.0)):
            for official in (False, True):
                limits = {"global_thr": global_thr, "individual_thr": individual_thr, "official": official}
                agree("mustdrop_filter", attention(rng, 2, m, n), **limits)
    for side, window in ((6, 2), (9, 3), (4, 4), (4, 1)):
        patches = np.repeat(rng.normal(size=(1, 1, 5)), side * side, axis=1)[0] + rng.normal(size=(side * side, 5))
        for threshold in (-1.1, 0.4, 1.1):
            x = np.concatenate([np.ones((1, 5)), patches])
            agree("mustdrop_merge", x, threshold=threshold, window=window)


@SEEDS
@pytest.mark.parametrize("class_token", [False, True])
def test_tome(seed: int, class_token: bool) -> None:
    rng = draw(seed)
    for n, r in ((17, [4]), (16, [3, 0, 5]), (9, [100, 1, 1]), (2, [1]), (1, [1]), (30, [8, 8, 8])):
        metrics, left = [], n
        for merges in r:
            metrics.append(rng.normal(size=(left, 6)))
            left -= max(0, min(merges, (left - class_token) // 2))
        agree("tome", rng.normal(size=(n, 5)), metrics, r, class_token=class_token)
        agree("tome", rng.normal(size=(n, 5)), [signs(rng, n, 4)], r[:1], class_token=class_token)


def edge_calls() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any], str]]:
    x = np.ones((4, 3))
    yield "divprune", (x, 5), {}, "keep"
    yield "divprune", (x, 0), {}, "keep"
    yield "divprune", (x, True), {}, "keep"
    yield "fastervlm", (x[None], 9), {}, "keep"
    yield "hired", (x, 9), {}, "keep"
    yield "vispruner", (x[None], np.ones((1, 3, 2)), 2), {"important_ratio": 1.5}, "important_ratio"
    yield "vispruner", (x[None], np.ones((1, 3, 2)), 4), {}, "keep"
    yield "visionzip", (x[None], np.ones((1, 4, 2)), np.ones((1, 4, 2)), 0, 1), {}, "dominant"
    yield "prumerge", (np.ones((1, 4, 3)), np.ones((1, 3)), np.ones((1, 4, 3))), {"ratio": 0.0}, "ratio"
    yield "trim", (x, np.ones(3)), {"ratio": 2.0}, "ratio"
    yield "hired_next", (np.ones((5, 2, 16)), np.ones((2, 16))), {"grid_h": 3, "grid_w": 2}, "tiles"
    yield "hired_next", (np.ones((5, 2, 15)), np.ones((2, 15))), {"grid_h": 2, "grid_w": 2}, "square raster"
    yield "hired_next", (np.ones((5, 2, 16)), np.ones((2, 16))), {"grid_h": 2, "grid_w": 2, "rate": 0.0}, "rate"
    yield "fastv", (x,), {"image_start": 2, "n_image": 3, "keep": 1}, "image_start"
    yield "fastv_count", (9,), {}, "keep_ratio"
    yield "pyramiddrop", (np.ones((3, 2)), np.ones((2, 5, 2))), {"image_start": 0, "n_image": 5, "keep": 2}, "key heads"
    yield "dart", (x, x[None]), {"image_start": 0, "n_image": 3, "per_pivot": 1}, "pivot_image"
    yield "sparsevlm_raters", (x, np.ones((0, 3))), {}, "text"
    yield "sparsevlm_stage", (np.ones((2, 1)), 1), {}, "image tokens"
    yield "recycle", (x,), {"clusters": 9}, "clusters"
    yield "fitprune", (np.ones((2, 5, 4)),), {"n_image": 3, "delete": 1}, "attn_visual_cols"
    yield "fitprune", (np.ones((2, 5, 4)),), {"n_image": 4, "delete": 4}, "delete"
    yield "mustdrop_filter", (np.ones((2, 0, 4)),), {"global_thr": 0.1, "individual_thr": 0.1}, "text"
    yield "mustdrop_merge", (np.ones((18, 3)),), {"window": 3}, "square raster"
    yield "mustdrop_key_set", (x,), {"share": 0.0}, "share"
    yield "tome", (x, [x], [1, 1]), {}, "metrics"
    yield "tome", (x, [np.ones((3, 3))], [1]), {}, "metric 0"
    yield "bipartite_soft_matching", (x, -1), {}, "r must be"
    yield "tome_schedule", (0, 8), {}, "layers"
    yield "greedy_map", (np.ones((1, 3, 3)), 4), {}, "keep"


@pytest.mark.parametrize(("name", "args", "named", "word"), list(edge_calls()))
def test_bad_arguments_are_named(name: str, args: tuple[Any, ...], named: dict[str, Any], word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        getattr(CORES, name)(*args, **named)


def test_mustdrop_key_set_is_never_dropped() -> None:
    weights = attention(draw(3), 2, 5, 25)
    keys = CORES.mustdrop_key_set(attention(draw(4), 3, 25))
    assert len(keys) == 2
    kept = CORES.mustdrop_filter(weights, global_thr=0.5, individual_thr=0.9, key_set=keys)
    np.testing.assert_array_equal(kept, keys)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cores_take_any_floating_dtype(dtype: torch.dtype) -> None:
    """What is exact in half precision gives the same answer in every dtype."""
    lib, rng = Cores(dtype), draw(2)
    weights, x = coarse(rng, 1, 4, 20), signs(rng, 1, 20, 4)
    np.testing.assert_array_equal(lib.divprune(x[0], 6), references.divprune(x[0], 6))
    np.testing.assert_array_equal(lib.fastervlm(weights, 7), references.fastervlm(weights, 7))
    np.testing.assert_array_equal(lib.vispruner(weights, x, 7), references.vispruner(weights, x, 7))
    np.testing.assert_array_equal(lib.tome(x[0], [x[0]], [5])[2], references.tome(x[0], [x[0]], [5])[2])
