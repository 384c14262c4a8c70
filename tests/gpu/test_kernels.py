"""On a GPU: the compiled Triton programs against the loops in torch and the plain float64 greedy, and no waiting."""

from typing import Any

import pytest
import torch

from tests.properties.kernels.reference import DISTANCES, KINDS, check_walk, cloud
from tokenprune import GreedyRepMax, Tokens
from tokenprune.kernels import affinity, choose, determinant_each, pick_each

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OBJECTIVES: tuple[Any, ...] = ("sum", "min")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_walks_equal_those_in_torch_on_one_matrix(kind: str, objective: Any) -> None:
    for sizes in ((1,), (7, 2), (576, 576), (2880, 1000)):
        images = [cloud(kind, n, 64, seed).cuda() for seed, n in enumerate(sizes)]
        matrices = [affinity(image[None], "cosine")[0] for image in images]
        keeps = [max(1, n // 9) for n in sizes]
        settings: dict[str, Any] = {"objective": objective, "distance": "precomputed", "starts": [0] * len(sizes)}
        for a, b in zip(
            pick_each(matrices, keeps, route="torch", **settings),
            pick_each(matrices, keeps, route="triton", **settings),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_picks_are_the_float64_greedy_up_to_rounding(distance: Any, dtype: torch.dtype) -> None:
    x = cloud("clusters", 576, 1024, 0, dtype)
    routes: tuple[Any, ...] = ("torch", "triton", "lazy")
    for route in routes:
        for objective in OBJECTIVES:
            start: Any = "sum" if objective == "sum" else "min"
            picks = pick_each([x.cuda()], [64], objective=objective, distance=distance, starts=[start], route=route)[0]
            check_walk(x, picks.cpu(), objective, distance, start)


def test_compiled_determinants_equal_those_in_torch() -> None:
    points = [cloud("random", n, 512, n) for n in (30, 576, 576)]
    kernels = [(x @ x.T).cuda() for x in points]
    in_torch = determinant_each(kernels, [30, 64, 20], route="torch")
    for a, b in zip(in_torch, determinant_each(kernels, [30, 64, 20], route="triton"), strict=True):
        assert torch.equal(a, b)


def test_selecting_does_not_wait_for_the_device() -> None:
    images = [cloud("random", n, 64, n).cuda() for n in (576, 500)]
    assert choose(576, 64, images[0].device) in ("triton", "torch")
    expected = pick_each(images, [64, 32], starts=["sum", "sum"])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pick_each(images, [64, 32], starts=["sum", "sum"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_strategy_answers_as_on_the_cpu() -> None:
    x = cloud("clusters", 300, 128, 1)
    kept = GreedyRepMax(40).select(Tokens(x.cuda())).indices
    assert kept.device.type == "cuda"
    assert kept.tolist() == GreedyRepMax(40).select(Tokens(x)).indices.tolist()
