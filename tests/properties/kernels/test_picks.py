"""Batch, loop and the plain float64 greedy agree, on every route."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.kernels.reference import DISTANCES, KINDS, check_determinant, check_walk, cloud
from tokenprune import GreedyRepMax, Tokens, TrimTokenator
from tokenprune.baselines import CDPruner, DivPrune, FasterVLM
from tokenprune.kernels import determinant_each, gram, pick_each
from tokenprune.kernels import images as images_module

ROUTES: tuple[Any, ...] = ("host", "torch", "lazy")
STARTS: tuple[Any, ...] = ("sum", "max", "min", 0)
OBJECTIVES: tuple[Any, ...] = ("sum", "min")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@st.composite
def problems(draw: Any) -> tuple[list[torch.Tensor], list[int], Any]:
    """Some images of one width and dtype, of equal and of different sizes, with budgets; and a distance."""
    d = draw(st.integers(1, 24))
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    sizes += sizes[:1]
    seed = draw(st.integers(0, 2**16))
    images = [cloud(draw(st.sampled_from(KINDS)), n, d, seed + i, dtype) for i, n in enumerate(sizes)]
    keeps = [draw(st.sampled_from(sorted({1, max(1, n // 3), max(1, n - 1), n}))) for n in sizes]
    return images, keeps, draw(st.sampled_from(DISTANCES))


@settings(max_examples=60)
@given(problems(), st.sampled_from(OBJECTIVES), st.sampled_from(STARTS))
def test_every_route_is_the_float64_greedy_up_to_rounding(problem: Any, objective: Any, start: Any) -> None:
    images, keeps, distance = problem
    starts = [start] * len(images)
    settings: dict[str, Any] = {"objective": objective, "distance": distance}
    for route in ROUTES:
        together = pick_each(images, keeps, starts=starts, route=route, **settings)
        for image, keep, picks in zip(images, keeps, together, strict=True):
            assert picks.shape == (keep,)
            assert picks.dtype == torch.int64
            check_walk(image, picks, objective, distance, start)
            alone = pick_each([image], [keep], starts=[start], route=route, **settings)[0]
            assert torch.equal(alone, picks)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_products_in_bands(kind: str, objective: Any) -> None:
    """From 512 rows and columns on only half of the matrix is computed."""
    for dtype in (torch.float32, torch.bfloat16):
        x = cloud(kind, 530, 530, 0, dtype)
        routes: tuple[Any, ...] = ("host", "lazy")
        for route in routes:
            picks = pick_each([x], [40], objective=objective, starts=["sum"], route=route)[0]
            check_walk(x, picks, objective, "cosine", "sum")


def test_a_step_on_the_host_is_that_of_torch_bit_for_bit() -> None:
    """The same matrix, the same rules: real ties included."""
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 9, 33):
        matrix = torch.randint(0, 3, (4, n, n), generator=generator).float()
        matrix = matrix + matrix.mT
        for objective in OBJECTIVES:
            for start in STARTS:
                settings: dict[str, Any] = {"objective": objective, "distance": "precomputed", "starts": [start] * 4}
                host = pick_each(list(matrix), [n] * 4, route="host", **settings)
                device = pick_each(list(matrix), [n] * 4, route="torch", **settings)
                assert torch.equal(torch.stack(host), torch.stack(device))


@settings(max_examples=30)
@given(st.data())
def test_determinants(data: Any) -> None:
    n, d = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 30))
    kernels = [gram(cloud(data.draw(st.sampled_from(KINDS)), size, d, n + size)) for size in (n, n, max(1, n - 2))]
    keeps = [data.draw(st.sampled_from(sorted({1, max(1, len(kernel) - 1), len(kernel)}))) for kernel in kernels]
    for route in ("host", "torch"):
        together = determinant_each(kernels, keeps, route=route)
        for kernel, keep, picks in zip(kernels, keeps, together, strict=True):
            check_determinant(kernel.double().numpy(), picks.tolist(), 1e-4 * max(1.0, float(kernel.max())))
            assert len(picks) == keep
            if route == "host":
                assert torch.equal(determinant_each([kernel], [keep], route="host")[0], picks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "strategy",
    [GreedyRepMax(0.3), GreedyRepMax(1.0), TrimTokenator(0.3), DivPrune(7), CDPruner(0.4), FasterVLM(5)],
    ids=repr,
)
def test_a_ragged_batch_of_tokens_equals_the_loop(strategy: Any, dtype: torch.dtype) -> None:
    batch = []
    for seed, (n, kind) in enumerate([(24, "random"), (24, "copies"), (1, "random"), (40, "zeros"), (24, "clusters")]):
        signals = {name: cloud("random", n, 6, 50 + seed, dtype) for name in ("clip_visual", "vision_states")}
        text = cloud("random", 3 + seed, 8, seed, dtype)
        batch.append(
            Tokens(
                cloud(kind, n, 8, seed, dtype),
                text=text,
                clip_text=text[:2, :6],
                cls_attention=signals["vision_states"].mT.contiguous().abs(),
                clip_visual=signals["clip_visual"],
            )
        )
    for one, alone in zip(strategy.select_batch(batch), map(strategy.select, batch), strict=True):
        assert torch.equal(one.indices, alone.indices)
        assert one.order is None or torch.equal(one.order, alone.order)
        assert one.scores is None or torch.equal(one.scores, alone.scores)


def test_parts_that_do_not_fit_together_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [cloud("random", n, 5, n) for n in (9, 12, 9, 12, 9)]
    keeps = [4, 5, 9, 12, 1]
    for route in ("host", "torch"):
        settings: dict[str, Any] = {"starts": ["sum"] * 5, "route": route}
        whole = pick_each(images, keeps, **settings)
        for name in ("MATRIX_BYTES", "TOGETHER_BYTES"):
            monkeypatch.setattr(images_module, name, 2 * 12 * 12 * 4)
        parts = pick_each(images, keeps, **settings)
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
