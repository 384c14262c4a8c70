"""Work that is saved must not change what is chosen: some rows for all rows, float32 with a bound for float64."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenprune import Tokens, alignment
from tokenprune.alignment import MIAlignment
from tokenprune.kernels.ahead import RowsAhead, weighted_determinant_each
from tokenprune.kernels.blocks import cosines_with
from tokenprune.kernels.sure import rough_distances, sure_order

KINDS = ("noise", "equal rows", "whole numbers", "tiny", "bfloat16", "far text", "one large row", "float64")


def image(kind: str, n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows and a text."""
    draw = torch.Generator().manual_seed(seed)
    x, text = torch.randn(n, d, generator=draw), torch.randn(4, d, generator=draw)
    if kind == "equal rows":
        x = x[torch.randint(n // 3, (n,), generator=draw)]
    elif kind == "whole numbers":
        x, text = (2 * x).round(), (2 * text).round()
    elif kind == "tiny":
        x, text = x * 1e-30, text * 1e-30
    elif kind == "bfloat16":
        x = x.bfloat16()
    elif kind == "far text":
        text = text * 1e6
    elif kind == "one large row":
        x[n // 2] *= 1e4
    return (x.double(), text.double()) if kind == "float64" else (x, text)


def in_order(scores: np.ndarray, keep: int, slack: float) -> list[int]:
    """Naive ranking: runs of scores that follow one another within the slack, each by index."""
    left = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    runs = [[left[0]]]
    for before, i in pairwise(left):
        if scores[before] - scores[i] <= slack:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [i for run in runs for i in sorted(run)][:keep]


@pytest.mark.parametrize("kind", KINDS)
def test_distances_in_float32_are_within_their_bound(kind: str) -> None:
    for seed, d in enumerate((1, 3, 64, 200, 1100)):
        x, text = image(kind, 90, d, seed)
        if kind == "float64":
            x, text = x.float(), text.float()
        scale = 2.0 ** -float(torch.frexp(torch.maximum(x.float().abs().max(), text.abs().max())).exponent)
        centre = text.double().mean(0) * scale
        found, bound = rough_distances(x, centre, torch.tensor(scale, dtype=torch.float64))
        true = ((x.double().numpy() * scale - centre.numpy()) ** 2).sum(1)
        assert (np.abs(found - true) <= bound).all()
        assert (bound <= 1e-4 * (true + float(centre.square().sum())) + 1e-20).all()  # not so wide that it says nothing


@pytest.mark.parametrize("kind", KINDS)
def test_alignment_keeps_what_scores_in_float64_keep(kind: str) -> None:
    for seed, (n, d) in enumerate([(5, 3), (60, 64), (200, 700)]):
        x, text = image(kind, n, d, seed)
        scores = -((x.double().numpy()[:, None] - text.double().numpy()[None]) ** 2).sum(-1).mean(1)
        for keep in (1, n // 3, n):
            found = MIAlignment(keep).select(Tokens(x, text=text))
            assert found.order is not None
            assert found.order.tolist() == in_order(scores, keep, 2.0**-44 * np.abs(scores).max())


def test_only_what_the_bound_leaves_open_is_scored_in_float64() -> None:
    true = np.array([9.0, 7.0, 7.001, 5.0, 3.001, 3.0, 1.0, 0.0, -20.0, 0.5])
    asked: list[int] = []

    def exact(tokens: np.ndarray) -> np.ndarray:
        asked.extend(tokens.tolist())
        return true[tokens]

    rough = true + np.array([0, 1, -1, 1, -1, 1, 0, 1, -1, 0]) * 0.001
    order = sure_order(rough, np.full(10, 0.0011), 3, exact)
    assert order is not None
    assert order.tolist() == [0, 2, 1]
    assert asked == [1, 2, 8]  # the two that are close, and the largest absolute score, which sets the size of a tie


def test_where_most_is_open_all_is_scored_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []

    def watched(*given: Any) -> Tensor | None:
        answers.append(sure_order(*given))
        return answers[-1]

    monkeypatch.setattr(alignment, "sure_order", watched)
    tokens = Tokens(torch.ones(6, 4), text=torch.zeros(1, 4))
    assert MIAlignment(3).select(tokens).indices.tolist() == [0, 1, 2]
    assert answers == [None]


@pytest.mark.parametrize("kind", KINDS)
def test_determinants_of_some_rows_are_those_of_the_whole_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    compute = RowsAhead._compute

    def counted(rows: RowsAhead, *given: object) -> None:
        compute(rows, *given)  # type: ignore[arg-type]
        computed.append(len(rows._known))

    monkeypatch.setattr(RowsAhead, "_compute", counted)
    for seed, d in enumerate((8, 64, 300)):
        x, _ = image(kind, 240, d, seed)
        x[7] = 0.0
        weight = torch.rand(240, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
        unit = torch.nn.functional.normalize(x.double(), dim=1, eps=1e-300).numpy()
        kernel = unit @ unit.T * weight.numpy()[:, None] * weight.numpy()
        found = weighted_determinant_each([(x, weight)], [40])[0].tolist()
        expected: list[int] = []
        for _ in range(40):
            free = [i for i in range(240) if i not in expected]
            rest = kernel[np.ix_(expected, expected)]
            part = kernel[np.ix_(expected, free)]
            gains = kernel.diagonal()[free] - (part * np.linalg.lstsq(rest, part, rcond=1e-13)[0]).sum(0)
            if gains.max() <= 1e-5 * kernel.diagonal().max():
                break  # beyond the rank other rules decide
            close = [i for i, gain in zip(free, gains, strict=True) if gain >= gains.max() - 1e-11]
            expected.append(min(close))
        assert len(expected) >= min(d, 40) - 1
        assert found[: len(expected)] == expected
    assert max(computed) < 240


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_of_a_few_rows_come_from_blocks_of_all(kind: str) -> None:
    x, _ = image(kind, 150, 2000, 3)  # more than one block of rows
    x[70] = 0.0
    chosen = torch.tensor([140, 3, 70])
    rows = x.double().numpy()
    lengths = np.linalg.norm(rows, axis=1)
    lengths[70] = 1.0
    expected = (rows / lengths[:, None])[chosen.numpy()] @ (rows / lengths[:, None]).T
    assert np.abs(cosines_with(x, chosen).numpy() - expected).max() < 1e-14
