"""The Triton kernels, interpreted on the CPU, against the loops in torch."""

import sys
from typing import Any

import pytest
import torch

from tests.properties.kernels.reference import KINDS, check_walk, cloud
from tokenprune.kernels import choose, determinant_each, pick_each

fused = pytest.importorskip("tokenprune.kernels.fused")
pytestmark = pytest.mark.skipif(
    not fused.supports(8) or torch.cuda.is_available(), reason="needs Triton and its interpreter"
)
OBJECTIVES: tuple[Any, ...] = ("sum", "min")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_walks_equal_those_in_torch(kind: str, objective: Any) -> None:
    for sizes in ((1,), (2, 1), (33, 33), (64, 96, 7)):
        images = [cloud(kind, n, 6, seed) for seed, n in enumerate(sizes)]
        keeps = [n if seed % 2 else max(1, n // 3) for seed, n in enumerate(sizes)]
        settings: dict[str, Any] = {"objective": objective, "starts": ["sum"] * len(sizes)}
        in_torch = pick_each(images, keeps, route="torch", **settings)
        in_triton = pick_each(images, keeps, route="triton", **settings)
        for image, a, b in zip(images, in_torch, in_triton, strict=True):
            assert torch.equal(a, b)
            check_walk(image, b, objective, "cosine", "sum")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ties_go_to_the_lowest_index(objective: Any) -> None:
    matrix = torch.randint(0, 2, (3, 40, 40), generator=torch.Generator().manual_seed(1)).float()
    matrix = torch.maximum(matrix, matrix.mT)
    settings: dict[str, Any] = {"objective": objective, "distance": "precomputed", "starts": [5] * 3}
    for a, b in zip(
        pick_each(list(matrix), [40] * 3, route="torch", **settings),
        pick_each(list(matrix), [40] * 3, route="triton", **settings),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_determinants_equal_those_in_torch(kind: str) -> None:
    points = [cloud(kind, n, 12, n) for n in (1, 20, 33, 33)]
    kernels = [x @ x.T for x in points]
    keeps = [1, 20, 10, 14]  # beyond the rank as well
    in_torch = determinant_each(kernels, keeps, route="torch")
    for a, b in zip(in_torch, determinant_each(kernels, keeps, route="triton"), strict=True):
        assert torch.equal(a, b)


def test_without_triton_the_loops_in_torch_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert choose(576, 64, gpu) == "triton"
    assert choose(576, 64, gpu, itemsize=8) == "triton"
    assert choose(9000, 64, gpu, itemsize=8) == "torch"  # more scores than the registers of a program hold
    assert choose(20_000, 64, gpu) == "lazy"
    monkeypatch.delitem(sys.modules, "tokenprune.kernels.fused")
    monkeypatch.setattr("tokenprune.kernels.fused", None, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    import tokenprune.kernels

    monkeypatch.delattr(tokenprune.kernels, "fused")
    assert choose(576, 64, gpu) == "torch"
