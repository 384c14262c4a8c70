"""Sums that do not depend on their order, ties, bounds of rounding, and decisions one by one."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tests.properties.kernels.reference import KINDS, cloud
from tokenprune.kernels import affinity, pick_each, top_each, top_k
from tokenprune.kernels import images as images_module
from tokenprune.kernels.decide import Decider, TooManyError, UnitRows
from tokenprune.kernels.lazy import LazyRows
from tokenprune.kernels.similarity import rounding, row_sums
from tokenprune.kernels.ties import exact_sum, lowest_best, power_of_two


def test_a_sum_is_the_same_in_every_order_and_exact() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(33, 20, generator=draw) ** 4
    expected = exact_sum(values, 0)
    for _ in range(20):
        assert torch.equal(exact_sum(values[torch.randperm(33, generator=draw)], 0), expected)
    columns = [sum(map(Fraction, column)) for column in values.double().T.tolist()]
    assert expected.tolist() == pytest.approx([float(column) for column in columns], abs=33 * 2.0**-47)
    assert exact_sum(torch.zeros(3, 2), 0).tolist() == [0.0, 0.0]
    assert exact_sum(torch.zeros(0, 2), 0).tolist() == [0.0, 0.0]


def test_a_sum_does_not_depend_on_other_images_or_on_the_dtype() -> None:
    one, other = cloud("random", 5, 7, 0), 1e6 * cloud("random", 5, 7, 1)
    both = exact_sum(torch.stack([one, other]), -2)
    assert torch.equal(both[0], exact_sum(one, -2))
    assert torch.equal(both[0], exact_sum(one.double(), -2))
    huge = torch.full((4, 2), 1e300, dtype=torch.float64)
    assert exact_sum(huge, 0).tolist() == pytest.approx([4e300] * 2, rel=1e-14)


def test_powers_of_two_are_exact() -> None:
    exponents = torch.tensor([-1022, -100, 0, 1, 52, 1023])
    assert power_of_two(exponents).tolist() == [math.ldexp(1.0, exponent) for exponent in exponents.tolist()]


def test_ties_go_to_the_lowest_index() -> None:
    assert lowest_best(torch.tensor([[1.0, 2.0, 2.0 + 1e-15], [-torch.inf, 3.0, 3.0]]), 1e-14).tolist() == [1, 1]
    scores = torch.tensor([0.0, 5.0, 5.0 + 1e-15, 7.0, -torch.inf, -torch.inf], dtype=torch.float64)
    assert top_k(scores, 6, slack=1e-14)[1].tolist() == [3, 1, 2, 0, 4, 5]
    assert top_k(scores, 6)[1].tolist() == [3, 2, 1, 0, 4, 5]
    slacks = [torch.tensor(1e-14, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)]
    first, second = top_each([scores, scores], [3, 3], slacks=slacks)
    assert first[1].tolist() == [3, 1, 2]
    assert second[1].tolist() == [3, 2, 1]


@pytest.mark.parametrize("kind", [*KINDS, "constant", "growing"])
def test_entries_are_within_the_bound_of_rounding(kind: str) -> None:
    for n, d in ((9, 3), (40, 128), (40, 700), (530, 530)):
        x = cloud("random" if kind in ("constant", "growing") else kind, n, d, n)
        if kind == "constant":  # every product rounds to the same side
            x = 0.1 + 1e-4 * x
        if kind == "growing":
            x = x * torch.logspace(-6, 6, d)
        rows = UnitRows(x)
        i, j = (each.reshape(-1) for each in np.meshgrid(np.arange(min(n, 60)), np.arange(n)))
        true = -rows.products(i, j)
        bound = rounding(d, torch.float32)
        matrix = affinity(x[None], "cosine")
        others = i != j
        assert np.abs(matrix[0].numpy()[i, j] - true)[others].max() <= bound
        lazy = np.stack([LazyRows(x, "cosine").row(row).numpy() for row in range(min(n, 60))])
        assert np.abs(lazy[i, j] - true)[others].max() <= rounding(d, torch.float32, columns=d)
        sums, added = row_sums(matrix)
        assert (sums - matrix.double().sum(-1)).abs().max() <= added
        approximate = LazyRows(x, "cosine")
        exact = np.array([-rows.products(np.full(n, k), np.arange(n)).sum() for k in range(min(n, 60))])
        own = x[:60].any(1).numpy().astype(float)
        found = approximate.reduce("sum").numpy()[:60]
        assert np.abs(found - (exact + own - 1)).max() <= approximate.sum_rounding()


def test_what_is_too_close_is_done_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cloud("random", 1, 40, 0) + 1e-6 * cloud("random", 90, 40, 1)
    expected = pick_each([x.double()], [30], starts=["sum"], route="host")[0]
    with pytest.raises(TooManyError):
        Decider(x, "sum", lambda rows, columns: np.zeros((len(rows), len(columns))), 1e-5, 50)(
            np.arange(2), np.arange(2, 90)
        )
    calls = []
    whole = images_module._in_float64

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return whole(*args)

    monkeypatch.setattr(images_module, "_in_float64", counted)
    found = pick_each([x, x], [30, 30], starts=["sum", "sum"], route="host")
    assert len(calls) == 2
    assert all(torch.equal(order, expected) for order in found)


def test_a_lower_precision_of_products_is_not_trusted() -> None:
    """With "medium" torch may multiply float32 matrices in bfloat16."""
    x = cloud("clusters", 60, 40, 3)
    expected = pick_each([x], [20], starts=["sum"])[0]
    torch.set_float32_matmul_precision("medium")
    try:
        assert not images_module.in_float32(x, "cosine")
        assert torch.equal(pick_each([x], [20], starts=["sum"])[0], expected)
    finally:
        torch.set_float32_matmul_precision("highest")
