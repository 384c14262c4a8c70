"""FitPrune: a cut within the layer, between attention and feed-forward, against the hand-made language model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Decoder, Rule, Stage, View, check_decoder
from tests.models.oracle import BATCHES as ALL
from tests.models.oracle import features_of, traces
from tests.models.test_decoder_generate import LAYERS, tiny
from tests.parity import references
from tokenprune import GreedyRepMax, prune
from tokenprune.baselines import FastV, FitPrune, FitPruneStage
from tokenprune.core.places import Positions
from tokenprune.evaluate.attention_fit import fit_fitprune, read_peaks
from tokenprune.models import UnsupportedError

BATCHES = {**ALL, "two images": ["compare <0> with <4> please", "here is <1> now", "no image at all"]}
"""In one batch an image has no text behind it, which is refused."""
# Each value once; the full product is run by `make test-matrix`.
MATRIX = [
    pytest.param("sdpa", "dynamic"),
    pytest.param("eager", "static"),
    pytest.param("sdpa", "static", marks=pytest.mark.matrix),
    pytest.param("eager", "dynamic", marks=pytest.mark.matrix),
]


def fitprune_rule(drop: int) -> Rule:
    """Rows of the whole attention map, through the naive reference."""

    def rule(view: View) -> list[Tensor]:
        kept = []
        for image, text in zip(view.images, view.text, strict=True):
            rows = view.attention[:, torch.cat([image, text])][:, :, image].numpy()
            kept.append(
                torch.from_numpy(references.fitprune(rows, n_image=len(image), delete=min(drop, len(image) - 1)))
            )
        return kept

    return rule


def stages_of(drops: tuple[int, ...], policy: Positions) -> list[Stage]:
    return [Stage(layer, policy, fitprune_rule(drop), within=True) for layer, drop in enumerate(drops) if drop]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", [None, "compact"])
def test_every_step_equals_the_reference(positions: Positions | None, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    drops = (5, 0, 4, 2)
    stages = stages_of(drops, positions or "original")
    record = check_decoder(
        model, make_inputs(BATCHES[batch]), FitPrune(drops), stages, positions=positions, cache_implementation=cache
    )
    for image in record.images:
        assert image.layer_tokens == (16, 11, 11, 7)
        assert image.tokens_kept == 5
        assert [stage.tokens_out for stage in image.stages] == [11, 7, 5]


@pytest.mark.parametrize("batch", ["padded", "two images"])
def test_it_goes_with_stages_between_layers(batch: str) -> None:
    """Also at one layer: then all of them act between the layers, which leaves the same."""
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES[batch])

    def most(view: View) -> list[Tensor]:
        rows = [view.attention[:, -1, image].mean(0) for image in view.images]
        return [row.argsort(descending=True)[:6].sort().values for row in rows]

    strategy = FitPruneStage(3, layer=1) >> FastV(6, layer=2) >> FitPruneStage(2, layer=3)
    stages = [
        Stage(0, "original", fitprune_rule(3), within=True),
        Stage(2, "original", most),
        Stage(2, "original", fitprune_rule(2), within=True),
    ]
    record = check_decoder(model, inputs, strategy, stages, positions=None)
    assert record.images[0].layer_tokens == (16, 13, 6, 4)
    shared = FitPruneStage(3, layer=2) >> FastV(6, layer=2)
    record = check_decoder(
        model,
        inputs,
        shared,
        [Stage(1, "original", fitprune_rule(3), within=True), Stage(2, "original", most)],
        positions=None,
    )
    assert record.images[0].layer_tokens == (16, 16, 6, 6)


def test_the_feed_forward_part_works_on_what_is_left() -> None:
    model, make_inputs = tiny()
    seen: dict[int, list[int]] = {}
    handles = [
        layer.mlp.gate_proj.register_forward_pre_hook(
            lambda module, args, number=number: seen.setdefault(number, []).append(args[0].shape[1])
        )
        for number, layer in enumerate(model.model.language_model.layers)
    ]
    inputs = make_inputs(BATCHES["one row"])
    text = int(inputs["attention_mask"].sum()) - 16
    with prune(model, FitPrune((5, 0, 4, 2))):
        model.generate(**inputs, max_new_tokens=2)
    for handle in handles:
        handle.remove()
    assert seen == {layer: [text + left, 1] for layer, left in enumerate((11, 11, 7, 5))}


def test_beams_of_a_batch_equal_single_rows() -> None:
    model, make_inputs = tiny()
    strategy, settings = FitPrune((5, 3, 0, 2)), {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with prune(model, strategy) as together:
        many = model.generate(**make_inputs(BATCHES["padded"]), **settings)
    for row, prompt in enumerate(BATCHES["padded"]):
        with prune(model, strategy) as alone:
            single = model.generate(**make_inputs([prompt]), **settings)
        assert torch.equal(many[row, -4:], single[0, -4:])
        assert torch.equal(together.images[row].indices, alone.images[0].indices)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_nothing_is_the_plain_model_to_the_last_bit(attention: str) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES["padded"])
    settings = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    plain, forward = model.generate(**inputs, **settings), model(**inputs).logits
    with prune(model, FitPrune((0, 0))):
        pruned, pruned_forward = model.generate(**inputs, **settings), model(**inputs).logits
    assert torch.equal(torch.stack(plain.logits), torch.stack(pruned.logits))
    assert torch.equal(forward, pruned_forward)


def test_nothing_stays_behind_and_logits_have_the_length_behind_the_last_layer() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    before, plain = traces(model), model(**inputs).logits
    with prune(model, GreedyRepMax(12) >> FitPrune((2, 0, 0, 3))) as record:
        logits = model(**inputs).logits
    assert logits.shape[:2] == record.calls[0].columns.shape  # type: ignore[union-attr]
    assert logits.shape[1] == plain.shape[1] - 9
    model.model.language_model.layers[0].mlp.gate_proj.register_forward_pre_hook(fail)
    handles = list(model.model.language_model.layers[0].mlp.gate_proj._forward_pre_hooks)
    with pytest.raises(RuntimeError, match="on purpose"), prune(model, FitPrune((2, 0, 0, 3))):
        model(**inputs)
    model.model.language_model.layers[0].mlp.gate_proj._forward_pre_hooks.pop(handles[-1])
    assert traces(model) == before
    assert torch.equal(model(**inputs).logits, plain)


def fail(*args: Any) -> None:
    raise RuntimeError("on purpose")


def test_layers_that_the_model_lacks_and_images_without_text_behind_are_refused() -> None:
    model, make_inputs = tiny()
    with (
        prune(model, FitPrune((1, 1))),
        pytest.raises(UnsupportedError, match="prompt 1 has no text after its image 0"),
    ):
        model(**make_inputs(ALL["two images"]))
    with pytest.raises(UnsupportedError, match="choose a layer from 1 to 4"):
        prune(model, FitPrune((0,) * LAYERS + (1,)))
    with pytest.raises((TypeError, ValueError), match="FitPrune: drop"):
        FitPrune(())
    for bad in (-1, 1.0, True, "3", float("nan")):
        with pytest.raises((TypeError, ValueError), match="FitPrune: drop must be"):
            FitPrune((2, bad))  # type: ignore[arg-type]


def naive_drops(mine: Any, text: Any, alpha: float) -> list[int]:
    """The rule with sets and loops over plain numbers."""
    gone: set[int] = set()
    drops = []
    for layer in range(len(mine)):
        groups = []
        for scores in (mine[layer], text[layer]):
            lost, group = sum(scores[i] for i in gone), set()
            for i in sorted(set(range(len(scores))) - gone, key=lambda i: (scores[i], i)):
                lost += scores[i]
                if lost > alpha * sum(scores):
                    break
                group.add(i)
            groups.append(group)
        leaving = groups[0] & groups[1]
        if len(gone | leaving) == len(mine[layer]):
            leaving.discard(max(leaving, key=lambda i: mine[layer][i] * text[layer][i]))
        drops.append(len(leaving))
        gone |= leaving
    return drops


def test_the_fit_reaches_the_reduction_with_the_naive_rule() -> None:
    from tokenprune.baselines.fitprune import fitprune_drops, fitprune_fit, fitprune_operations

    draw = torch.Generator().manual_seed(0)
    for n, layers in ((40, 6), (7, 3), (1, 2)):
        mine = torch.rand(3, layers, n, generator=draw, dtype=torch.float64) ** 4
        text = torch.rand(3, layers, n, generator=draw, dtype=torch.float64) ** 4
        for alpha in (0.0, 0.05, 0.3, 0.8, 1.0):
            got = fitprune_drops(mine[0], text[0], alpha=alpha)
            assert got == naive_drops(mine[0].tolist(), text[0].tolist(), alpha)
            assert sum(got) < n
        if n == 1:
            continue
        for reduction in (0.2, 0.5):
            size = {"n": n, "width": 16, "ffn": 48}
            alone = [
                fitprune_fit(a[None], b[None], reduction=reduction, width=16, ffn=48)
                for a, b in zip(mine, text, strict=True)
            ]
            dense = fitprune_operations([0] * layers, **size)
            assert all(fitprune_operations(drops, **size) <= (1 - reduction) * dense for drops in alone)
            together = fitprune_fit(mine, text, reduction=reduction, width=16, ffn=48)
            assert together == tuple(sum(column) // 3 for column in zip(*alone, strict=True))
    with pytest.raises(ValueError, match="reduction"):
        fitprune_fit(mine, text, reduction=1.0, width=16, ffn=48)


@torch.no_grad()
def test_the_fit_reads_the_attention_of_the_untouched_model() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    peaks = read_peaks(model, [inputs])
    decoder, table = Decoder(model), model.get_input_embeddings()
    for row, features in enumerate(features_of(model, inputs)):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        image = (ids == model.config.image_token_id).nonzero().flatten()
        x = table.weight[ids].clone()
        x[image] = features
        for layer in range(LAYERS):
            x, attention, _ = decoder.attend(x, layer, torch.arange(len(ids)))
            strongest = attention.amax(0)[:, image]
            expected = torch.stack([strongest[image].sum(0) / 16, strongest[int(image[-1]) + 1 :].sum(0)])
            assert (peaks[row][layer] - expected).abs().max() < 1e-6
            x = decoder.feed_forward(x, layer)
    strategy = fit_fitprune(model, [inputs], reduction=0.4)
    assert len(strategy.drops) == LAYERS
    assert all(isinstance(drop, int) for drop in strategy.drops)
    with prune(model, strategy) as record:
        model.generate(**inputs, max_new_tokens=2)
    assert record.images[0].tokens_kept == 16 - sum(strategy.drops)
    with pytest.raises(ValueError, match="0 images"):
        fit_fitprune(model, [], reduction=0.5)
