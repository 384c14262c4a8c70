"""Instances with proven optima. Reference files are read when they are there; else clouds proved here by two solvers.

The folder is TOKENPRUNE_SHARED, or `shared` beside the repository.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.properties.repmax.clouds import Array, greedy_share
from tokenprune.repmax import (
    certify,
    distance_matrix,
    exact_repmax,
    greedy_repmax,
    local_search_repmax,
    pair_sum,
    token_cloud,
)

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("TOKENPRUNE_SHARED", ROOT.parent / "shared")) / "repmax"
FILES = sorted(FOLDER.glob("d_*.npz")) if FOLDER.is_dir() else []
BENCHMARKS = sorted(FOLDER.glob("gkd_c_*.npz")) if FOLDER.is_dir() else []


@dataclass(frozen=True)
class Instance:
    """Tokens or a matrix, and what is known of the optimum."""

    name: str
    x: Array
    k: int
    distance: Any
    best: float
    convex: float | None = None
    greedy: Array | None = None


def from_file(path: Path) -> Instance:
    with np.load(path, allow_pickle=False) as file:
        greedy = file["greedy_idx"] if float(file["greedy_margin"]) > 1e-7 else None
        return Instance(
            path.stem,
            file["X"].astype(np.float64),
            int(file["k"]),
            str(file["metric"]),
            float(file["opt_sum"]),
            float(file["ub_convex"]),
            greedy,
        )


def proved_here(kind: Any, n: int, d: int, k: int, distance: Any) -> Instance:
    """Optimum by HiGHS, or by enumeration; then the branch and bound has something independent to be compared with."""
    x = token_cloud(kind, n, d, seed=11)
    small = exact_repmax(x, k, distance=distance, solver="enumerate" if n <= 16 else "ilp")
    assert small.optimal
    return Instance(f"{kind}-{distance}-n{n}k{k}", x, k, distance, small.value * k * (k - 1) / 2)


GENERATED = [
    ("clusters", 16, 8, 5, "cosine"),
    ("dups", 16, 6, 6, "euclidean"),
    ("aniso", 18, 12, 5, "angular"),
    ("outliers", 18, 8, 4, "sqeuclidean"),
]


@pytest.mark.parametrize("recipe", GENERATED, ids=lambda recipe: f"{recipe[0]}-{recipe[4]}")
def test_generated_instances(recipe: tuple[Any, ...]) -> None:
    check(proved_here(*recipe), accuracy=1e-6 if recipe[1] > 16 else 1e-9)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_instances(path: Path) -> None:
    check(from_file(path), accuracy=1e-9)


def check(instance: Instance, accuracy: float) -> None:
    x, k, distance, best = instance.x, instance.k, instance.distance, instance.best
    pairs = k * (k - 1) / 2
    result = exact_repmax(x, k, distance=distance, time_limit=300.0)
    assert result.status == "optimal"
    assert abs(result.value * pairs - best) <= accuracy * best
    assert result.upper_bound * pairs >= best * (1 - 1e-12 - (accuracy if accuracy > 1e-9 else 0))
    found = exact_repmax(x, k, distance=distance, solver="bnb", time_limit=300.0)
    assert found.value == pytest.approx(result.value, rel=1e-9)
    for start in ("farthest_mean", "pair", 0, len(x) - 1):
        order = greedy_repmax(x, k, distance=distance, start=start)
        value = pair_sum(x, order, distance=distance)
        assert greedy_share(k) * best <= value * (1 + 1e-9) <= best * (1 + 1e-6)
        if start == "farthest_mean" and instance.greedy is not None:
            assert order.tolist() == instance.greedy.tolist()
    local = local_search_repmax(x, k, distance=distance)
    assert pair_sum(x, local, distance=distance) >= (k - 1) / (k + 1) * best
    bounds = [certify(x, local, distance=distance, effort=e) for e in ("shifted", "convex", "tangent")]
    assert all(certificate.verify(x) for certificate in bounds)
    uppers = [certificate.upper_bound * pairs for certificate in bounds]
    assert best * (1 - 1e-12 - (accuracy if accuracy > 1e-9 else 0)) <= uppers[0]
    assert uppers[0] <= uppers[1] * (1 + 1e-9) <= uppers[2] * (1 + 2e-9)
    if instance.convex is not None:
        assert uppers[1] <= instance.convex * (1 + 1e-6)


@pytest.mark.parametrize("k", [50, 100, 250])
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_matrices(path: Path, k: int) -> None:
    """MDPLIB GKD-c: n = 500, Euclidean distances rounded to five decimals."""
    with np.load(path, allow_pickle=False) as file:
        n = int(file["n"])
        matrix = np.zeros((n, n))
        matrix[np.triu_indices(n, 1)] = file["d_upper_1e5"] / 1e5
        best = float(file[f"opt_k{k}"])
    matrix += matrix.T
    result = exact_repmax(matrix, k, distance="precomputed", time_limit=300.0)
    assert result.status == "optimal"
    assert result.value * k * (k - 1) / 2 == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", ["d_full_aniso_cosine_n576k32", "d_full_dups_euclidean_n576k64"])
def test_exact_certificates_at_full_size(name: str) -> None:
    """The whole tree is written down and checks again from the tokens, also for a set that is not the best."""
    path = FOLDER / f"{name}.npz"
    distance: Any = "euclidean"
    if path.is_file():
        instance = from_file(path)
        x, k, distance, best = instance.x, instance.k, instance.distance, instance.best
    else:
        x, k = token_cloud("dups", 200, 24, seed=1), 24
        best = exact_repmax(x, k, distance=distance).value * k * (k - 1) / 2
    certificate = certify(x, greedy_repmax(x, k, distance=distance), distance=distance, effort="exact")
    assert certificate.upper_bound * k * (k - 1) / 2 == pytest.approx(best, rel=2e-9)
    assert certificate.problems(x) == []


def test_the_reference_distances_are_ours() -> None:
    """The files define the distances in words; the fractional certificates in them check the matrix as a whole."""
    for path in FILES:
        with np.load(path, allow_pickle=False) as file:
            z, k, bound = file["z_convex"].astype(np.float64), int(file["k"]), float(file["ub_convex"])
            matrix = distance_matrix(file["X"], str(file["metric"]))  # type: ignore[arg-type]
        z += (k - z.sum()) / z.size
        g = matrix @ z
        assert 0.5 * z @ g + np.sort(g)[-k:].sum() - g @ z == pytest.approx(bound, rel=1e-9)
