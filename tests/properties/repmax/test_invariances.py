"""How the optimum and the sets react to changes of the cloud that must not matter, or only in a known way."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.properties.repmax.clouds import DISTANCES, Array, Cloud, clouds
from tokenprune.repmax import (
    certify,
    exact_repmax,
    greedy_repmax,
    greedy_repmax_batched,
    local_search_repmax,
    mean_pairwise_distance,
    reverse_greedy_repmax,
    token_cloud,
)

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def optimum(x: Array, k: int, distance: Any) -> float:
    return exact_repmax(x, k, distance=distance).value


def tie_margin(cloud: Cloud, k: int) -> float:
    """Smallest lead of a greedy pick over the runner-up, relative to the scale."""
    matrix, margin = cloud.matrix, np.inf
    gains = matrix.sum(axis=1)
    left = list(range(cloud.n))
    total = np.zeros(cloud.n)
    for _ in range(k):
        ordered = sorted((gains[i] for i in left), reverse=True)
        if len(ordered) > 1:
            margin = min(margin, ordered[0] - ordered[1])
        pick = max(left, key=lambda i: (gains[i], -i))
        left.remove(pick)
        total = total + matrix[pick]
        gains = total
    return float(margin / max(cloud.scale, 1e-300))


@some
@given(clouds(largest=8), st.integers(0, 1000))
def test_permutation(cloud: Cloud, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(cloud.n)
    room = 1e-9 * cloud.scale
    distance: Any = cloud.distance
    assert abs(optimum(cloud.x, cloud.k, distance) - optimum(cloud.x[order], cloud.k, distance)) <= room
    if tie_margin(cloud, cloud.k) > 1e-9:
        expected = greedy_repmax(cloud.x, cloud.k, distance=distance)
        assert order[greedy_repmax(cloud.x[order], cloud.k, distance=distance)].tolist() == expected.tolist()


@some
@given(clouds(largest=8), st.integers(0, 1000))
def test_rigid_motions_and_scale(cloud: Cloud, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = cloud.x.shape[1]
    turned = cloud.x @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    distance: Any = cloud.distance
    value, room = optimum(cloud.x, cloud.k, distance), 1e-7 * cloud.scale
    assert abs(optimum(turned, cloud.k, distance) - value) <= room
    if distance in ("cosine", "angular"):
        lengths = np.exp(rng.normal(size=(cloud.n, 1)))
        assert abs(optimum(cloud.x * lengths, cloud.k, distance) - value) <= room
    else:
        power = 2 if distance == "sqeuclidean" else 1
        assert abs(optimum(-3.0 * cloud.x + 0.5, cloud.k, distance) - 3.0**power * value) <= 9 * room


@some
@given(clouds(largest=8, distances=("cosine",)))
def test_cosine_is_half_the_squared_chord(cloud: Cloud) -> None:
    norms = np.linalg.norm(cloud.x, axis=1, keepdims=True)
    assume((norms > 0).all())
    chord = optimum(cloud.x / norms, cloud.k, "sqeuclidean")
    assert abs(optimum(cloud.x, cloud.k, "cosine") - chord / 2) <= 1e-9


@some
@given(clouds(smallest=2, largest=7))
def test_more_points_never_hurt_and_unselected_points_are_not_missed(cloud: Cloud) -> None:
    distance: Any = cloud.distance
    room = 1e-9 * cloud.scale
    result = exact_repmax(cloud.x, cloud.k, distance=distance)
    twin = np.concatenate([cloud.x, cloud.x[:1]])
    assert optimum(twin, cloud.k, distance) >= result.value - room
    for out in set(range(cloud.n)) - set(result.indices.tolist()):
        assert abs(optimum(np.delete(cloud.x, out, axis=0), cloud.k, distance) - result.value) <= room
    before = certify(cloud.x, result.indices, distance=distance, effort="convex").upper_bound
    after = certify(twin, result.indices, distance=distance, effort="convex").upper_bound
    assert after >= before * (1 - 1e-6) - room


@some
@given(clouds(smallest=2, largest=7))
def test_growing_budgets(cloud: Cloud) -> None:
    """Greedy sets are nested; the best mean falls with k; removing never falls below the cloud's mean."""
    distance: Any = cloud.distance
    whole = greedy_repmax(cloud.x, cloud.n, distance=distance).tolist()
    for k in range(cloud.n + 1):
        assert greedy_repmax(cloud.x, k, distance=distance).tolist() == whole[:k]
    best = [optimum(cloud.x, k, distance) for k in range(2, cloud.n + 1)]
    assert all(later <= earlier + 1e-9 * cloud.scale for earlier, later in pairwise(best))
    kept = reverse_greedy_repmax(cloud.x, max(2, cloud.k), distance=distance)
    mean = mean_pairwise_distance(cloud.x, kept, distance=distance)
    assert mean >= mean_pairwise_distance(cloud.x, distance=distance) - 1e-9 * cloud.scale


@some
@given(clouds(smallest=2, largest=8))
def test_torch_and_numpy_agree_in_float64(cloud: Cloud) -> None:
    assume(tie_margin(cloud, cloud.k) > 1e-7)
    distance: Any = cloud.distance
    tensor = torch.from_numpy(cloud.x)
    expected = greedy_repmax(cloud.x, cloud.k, distance=distance).tolist()
    assert greedy_repmax(tensor, cloud.k, distance=distance).tolist() == expected
    batch = greedy_repmax_batched(torch.stack([tensor, tensor.flip(0), tensor]), cloud.k, distance=distance)
    assert batch[0].tolist() == batch[2].tolist() == expected
    assert (cloud.n - 1 - batch[1]).tolist() == expected


@some
@given(clouds(smallest=2, largest=7), st.integers(0, 1000))
def test_quality_shifts_values_as_it_should(cloud: Cloud, seed: int) -> None:
    """A constant quality only adds itself; any quality keeps solvers and bounds in agreement."""
    distance: Any = cloud.distance
    room = 1e-9 * (cloud.scale + 3)
    plain = exact_repmax(cloud.x, cloud.k, distance=distance)
    lifted = exact_repmax(cloud.x, cloud.k, distance=distance, quality=np.full(cloud.n, 2.5))
    assert abs(lifted.value - plain.value - 2.5) <= room
    quality = np.random.default_rng(seed).normal(size=cloud.n)
    first = exact_repmax(cloud.x, cloud.k, distance=distance, quality=quality, solver="enumerate")
    second = exact_repmax(cloud.x, cloud.k, distance=distance, quality=quality, solver="bnb")
    assert abs(first.value - second.value) <= room
    mean = mean_pairwise_distance(cloud.x, first.indices, distance=distance) + quality[first.indices].mean()
    assert abs(first.value - mean) <= room
    start = local_search_repmax(cloud.x, cloud.k, distance=distance, quality=quality)
    for effort in ("tangent", "convex", "shifted", "exact"):
        certificate = certify(cloud.x, start, distance=distance, quality=quality, effort=effort)
        assert certificate.upper_bound >= first.value - room
        assert certificate.verify(cloud.x, quality=quality)
        assert not certificate.verify(cloud.x)


def test_bfloat16_tokens_lose_little() -> None:
    """Selecting from tokens rounded to bf16 costs less than 1e-3 of the objective measured on the unrounded ones."""
    for kind in ("clusters", "spatial"):
        x = token_cloud(kind, 256, 128, seed=3)
        rounded = torch.from_numpy(x).to(torch.bfloat16)
        for distance in DISTANCES:
            exact = greedy_repmax(x, 32, distance=distance)
            coarse = greedy_repmax(rounded, 32, distance=distance)
            values = [mean_pairwise_distance(x, s, distance=distance) for s in (exact, coarse)]
            assert values[1] >= values[0] * (1 - 1e-3)
