"""The same tokens, the same choice: whatever the batch, the threads, the code path, the route and the dtype."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.kernels.choices import HARD, choices, every_strategy, hard_tokens, kept, per_token
from tokenprune import Tokens
from tokenprune.baselines.cdpruner import greedy_map
from tokenprune.core.strategy import PruningStrategy
from tokenprune.kernels import pick_each

EVERY = every_strategy()
TIED = 2.0**-44
# Of equal tokens these keep the lowest; others look at places in the image, or merge.
LOWEST_FIRST = {
    "cdpruner", "dart", "divprune", "fastervlm", "fastv", "fitprune", "fitprune_stage", "greedy_repmax", "hired",
    "mi_alignment", "pyramiddrop", "pyramiddrop_stage", "reverse_greedy_repmax", "smallest_norm", "trim",
    "trim_tokenator",
}  # fmt: skip


def naive(x: torch.Tensor, keep: int, objective: str, start: Any) -> list[int]:
    """Greedy on minus the cosine in float64, one number after the other; equal rows share their products."""
    rows = x.double().numpy() + 0.0
    lengths = np.array([np.sqrt(sum(value * value for value in row)) for row in rows.tolist()])
    unit = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    names = [row.tobytes() for row in rows]
    first = [names.index(name) for name in names]
    n = len(rows)
    products: dict[tuple[int, int], float] = {}
    for i in set(first):
        for j in set(first):
            products[i, j] = float((unit[max(i, j)] * unit[min(i, j)]).sum())
    entry = np.array([[-1.0 if i == j else -products[first[i], first[j]] for j in range(n)] for i in range(n)])

    def lowest(scores: list[float], slack: float) -> int:
        return next(i for i, score in enumerate(scores) if score >= max(scores) - slack)

    if isinstance(start, int):
        order = [start]
    else:
        others = [[entry[i, j] for j in range(n) if start == "sum" or j != i] or [0.0] for i in range(n)]
        reduce: Any = {"sum": sum, "max": max, "min": min}[start]
        order = [lowest([float(reduce(row)) for row in others], TIED * (n if start == "sum" else 1))]
    while len(order) < keep:
        taken = [[entry[i, j] for j in order] for i in range(n)]
        scores = [
            -np.inf if i in order else sum(row) if objective == "sum" else min(row) for i, row in enumerate(taken)
        ]
        order.append(lowest(scores, TIED * (len(order) if objective == "sum" else 1)))
    return order


@settings(max_examples=20)
@given(
    st.sampled_from(HARD),
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 20)),
    st.sampled_from(["sum", "min"]),
    st.sampled_from(["sum", "max", "min", 0]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_picks_are_those_of_a_naive_loop(
    kind: str, seed: int, size: tuple[int, int, int], objective: Any, start: Any, dtype: torch.dtype
) -> None:
    x = hard_tokens(kind, seed, *size).visual.to(dtype)
    for keep in {1, max(1, len(x) // 2), len(x)}:
        expected = naive(x, keep, objective, start)
        routes: tuple[Any, ...] = ("host", "lazy", "torch")
        for route in routes:
            assert pick_each([x], [keep], objective=objective, starts=[start], route=route)[0].tolist() == expected
        two = pick_each([x, x.flip(0)], [keep, keep], objective=objective, starts=[start] * 2, route="host")
        assert two[0].tolist() == expected


@pytest.mark.parametrize("objective", ["sum", "min"])
@pytest.mark.parametrize("kind", HARD)
def test_a_float32_matrix_with_decisions_is_a_float64_matrix(kind: str, objective: Any) -> None:
    """Sizes at which products are made in bands and steps in blocks; in float64 nothing is left to be decided."""
    x = hard_tokens(kind, 3, 20, 30, 530).visual
    start = objective
    for keep in (9, 150):
        wide = pick_each([x.double()], [keep], objective=objective, starts=[start], route="host")[0]
        for route in ("host", "lazy"):
            narrow = pick_each([x], [keep], objective=objective, starts=[start], route=route)[0]
            assert torch.equal(narrow, wide), route


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@pytest.mark.parametrize("kind", HARD)
def test_a_choice_depends_on_the_numbers_alone(kind: str, strategy: PruningStrategy) -> None:
    """Not on the neighbours in the batch, their order, the threads, or the dtype that holds the numbers."""
    images = [hard_tokens(kind, seed) for seed in (0, 1)]
    images += [hard_tokens("random", 2, 4, 5), hard_tokens("copies", 3)]
    alone = [kept(strategy, tokens) for tokens in images]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3], [2, 0, 1]):
        for place, selection in zip(order, strategy.select_batch([images[i] for i in order]), strict=True):
            found = selection.indices if selection.order is None else selection.order
            assert found.tolist() == alone[place]
    for tokens, expected in zip(images, alone, strict=True):
        assert kept(strategy, in_double(tokens)) == expected
        if strategy.name in LOWEST_FIRST:
            check_lowest_first(tokens, expected)


def in_double(tokens: Tokens) -> Tokens:
    changes = {}
    for name, value in vars(tokens).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            changes[name] = value.double()
    return Tokens(**{**vars(tokens), **changes})


def check_lowest_first(tokens: Tokens, kept_tokens: list[int]) -> None:
    """Of tokens that are equal in every signal the lowest are kept."""
    names: list[bytes] = [b""] * tokens.n

    def note(rows: torch.Tensor) -> torch.Tensor:
        for i, row in enumerate(rows + 0.0):
            names[i] += row.numpy().tobytes()
        return rows

    per_token(tokens, note)
    for name in set(names):
        equal = [i for i, other in enumerate(names) if other == name]
        flags = [i in kept_tokens for i in equal]
        assert flags == sorted(flags, reverse=True), equal


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int, here: dict[str, list[int]]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = choices()
    finally:
        torch.set_num_threads(before)
    assert found == here


SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1"},
]


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: " ".join(path.values()))
def test_code_paths_change_nothing(path: dict[str, str], alone: dict[str, list[int]]) -> None:
    found = chosen_under(path)
    assert sorted(found) == sorted(alone)
    assert {name: order for name, order in found.items() if order != alone[name]} == {}


def chosen_under(path: dict[str, str]) -> dict[str, list[int]]:
    """In a process of its own, because torch and its libraries choose their code when they are loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS[0]} | path
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "tests.properties.kernels.choices"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def alone() -> dict[str, list[int]]:
    """Without settings, in a process too: tests declare signals, which changes what `random_tokens` draws here."""
    return chosen_under({})


@pytest.fixture(scope="module")
def here() -> dict[str, list[int]]:
    return choices()


def test_dependent_tokens_of_equal_quality_follow_in_order() -> None:
    """A kernel of rank 1 whose diagonal is rounded differently from place to place."""
    kernel = torch.full((1, 9, 9), 0.1, dtype=torch.float64)
    kernel += torch.eye(9, dtype=torch.float64) * torch.tensor([0.0, 3e-17] * 4 + [0.0])
    assert greedy_map(kernel, 9).tolist() == [list(range(9))]
