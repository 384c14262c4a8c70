"""Exact RepMax: time to proof and gaps, and other solvers on the same clouds: `python -m benchmarks.repmax`.

Writes into benchmarks/results/:
    repmax_proof.csv     our branch and bound over cloud, n, d, k and distance; gaps of the heuristics and certificates
    repmax_solvers.csv   the same small instances for ours, HiGHS (RLT and Glover) and, when installed, CP-SAT
    repmax_heuristics.csv  max-div, when installed, against greedy and swaps at n = 576
    repmax_gap_bundled.csv, .png  `tokenprune optimality` on the bundled model's tokens
    repmax.json          machine, versions, commit
One thread is used when OMP_NUM_THREADS=1 is set. Processor seconds stand beside wall seconds: machines are shared.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tokenprune.cli.main import main as tokenprune
from tokenprune.evaluate.environment import device_name, git_state, load_average, package_versions, usable_cores
from tokenprune.repmax import (
    certify,
    distance_matrix,
    exact_repmax,
    greedy_repmax,
    local_search_repmax,
    mean_pairwise_distance,
    reverse_greedy_repmax,
    token_cloud,
)
from tokenprune.repmax.clouds import Cloud
from tokenprune.repmax.problem.distances import Array, Distance
from tokenprune.repmax.problem.objective import Indices, Problem, prepare
from tokenprune.repmax.proof.milp import solve_milp

RESULTS = Path(__file__).resolve().parent / "results"
KINDS: tuple[Cloud, ...] = ("clusters", "aniso", "spatial", "outliers", "dups", "noisy", "isotropic")
DISTANCES: tuple[Distance, ...] = ("cosine", "euclidean")


def proofs(limit: float, quick: bool) -> Iterator[dict[str, Any]]:
    """Clouds of image size and around, solved and measured."""
    grid = [(576, d, k, distance) for d in (64, 1024) for distance in DISTANCES for k in (32, 64, 192)]
    grid += [(n, 64, n // 9, distance) for n in (144, 1152) for distance in DISTANCES]
    for kind in KINDS:
        for n, d, k, distance in grid[:: 6 if quick else 1]:
            yield proof(kind, n, d, k, distance, limit)


def proof(kind: Cloud, n: int, d: int, k: int, distance: Distance, limit: float) -> dict[str, Any]:
    """One row."""
    x = token_cloud(kind, n, d)
    wall, processor = time.perf_counter(), time.process_time()
    result = exact_repmax(x, k, distance=distance, solver="bnb", time_limit=limit)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    upper = result.upper_bound

    def gap(members: Indices) -> float:
        return 1.0 - mean_pairwise_distance(x, members, distance=distance) / upper

    greedy = greedy_repmax(x, k, distance=distance)
    swapped = local_search_repmax(x, k, distance=distance)
    certificates = {e: certify(x, swapped, distance=distance, effort=e) for e in ("tangent", "convex", "shifted")}
    row = {
        "cloud": kind,
        "n": n,
        "d": d,
        "k": k,
        "distance": distance,
        "status": result.status,
        "gap": result.gap,
        "nodes": result.nodes,
        "seconds": wall,
        "cpu_seconds": processor,
        "greedy_gap": gap(greedy),
        "reverse_gap": gap(reverse_greedy_repmax(x, k, distance=distance)),
        "swap_gap": gap(swapped),
        "random_gap": 1.0 - result.random_value / upper,
        "greedy_copies": _copies(x, greedy, distance),
    }
    return row | {f"{effort}_certificate": certificate.gap for effort, certificate in certificates.items()}


def _copies(x: Array, members: Indices, distance: Distance) -> int:
    block = distance_matrix(x[members], distance) + np.eye(len(members))
    return int((block == 0).any(axis=1).sum())


def solvers(limit: float, quick: bool) -> Iterator[dict[str, Any]]:
    """Instances of rising size until a solver fails; k = n/4, clustered cloud of width 1024."""
    names = ["bnb", "highs-rlt", "highs-glover"] + (["cp-sat"] if find_spec("ortools") else [])
    for distance in DISTANCES:
        alive = set(names)
        for n in (16, 24, 32) if quick else (16, 24, 32, 40, 48, 64, 96):
            problem = prepare(token_cloud("clusters", n, 1024), n // 4, distance=distance, owner="benchmark")
            best = exact_repmax(problem.matrix, n // 4, distance="precomputed", time_limit=limit).value * problem.pairs
            for name in [name for name in names if name in alive]:
                start = time.perf_counter()
                value, bound = solve_with(name, problem, limit)
                seconds = time.perf_counter() - start
                proved = bound <= best * (1 + 1e-6) and value >= best * (1 - 1e-6)
                if not proved:
                    alive.discard(name)
                yield {
                    "solver": name,
                    "distance": distance,
                    "n": n,
                    "k": n // 4,
                    "proved": proved,
                    "seconds": seconds,
                    "value_gap": 1 - value / best,
                    "bound_gap": bound / best - 1,
                }


def solve_with(name: str, problem: Problem, limit: float) -> tuple[float, float]:
    """Value and bound on the pair sum."""
    if name == "bnb":
        result = exact_repmax(problem.matrix, problem.k, distance="precomputed", solver="bnb", time_limit=limit)
        return result.value * problem.pairs, result.upper_bound * problem.pairs
    if name == "cp-sat":
        return cp_sat(problem, limit)
    indices, bound, _, _ = solve_milp(problem, time_limit=limit, formulation=name.removeprefix("highs-"))
    return (problem.total(indices) if indices is not None else 0.0), bound


def cp_sat(problem: Problem, limit: float) -> tuple[float, float]:
    """CP-SAT with product variables and the RLT rows; distances as integers of 1e-7 of the largest."""
    from ortools.sat.python import cp_model

    n, k = problem.n, problem.k
    unit = float(problem.matrix.max()) * 1e-7
    weights = np.round(problem.matrix / unit).astype(int)
    model = cp_model.CpModel()
    z = [model.new_bool_var(f"z{i}") for i in range(n)]
    y = {(i, j): model.new_bool_var(f"y{i}_{j}") for i in range(n) for j in range(i + 1, n)}
    model.add(sum(z) == k)
    for (i, j), product in y.items():
        model.add_implication(product, z[i])
        model.add_implication(product, z[j])
    for i in range(n):
        model.add(sum(y[min(i, j), max(i, j)] for j in range(n) if j != i) == (k - 1) * z[i])
    model.maximize(sum(int(weights[i, j]) * product for (i, j), product in y.items()))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    value = 0.0
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        value = problem.total(np.array([i for i in range(n) if solver.value(z[i])]))
    return value, solver.best_objective_bound * unit + 0.5 * unit * problem.pairs


def heuristics(limit: float, quick: bool) -> Iterator[dict[str, Any]]:
    """max-div with a time budget, against milliseconds of greedy and swaps."""
    if find_spec("max_div") is None:
        return
    max_div: Any = import_module("max_div")

    for kind in KINDS[: 1 if quick else 5]:
        for distance in DISTANCES:
            x = token_cloud(kind, 576, 64)
            metric = max_div.DistanceMetric.cosine() if distance == "cosine" else max_div.DistanceMetric.l2_euclidean()
            best = exact_repmax(x, 64, distance=distance, time_limit=limit)
            for budget in (1.0, 10.0):
                problem = max_div.MaxDivProblem.new(
                    x.astype(np.float32), 64, metric, diversity_metric=max_div.DiversityMetric.MEAN_PAIRWISE_DISTANCE
                )
                solver = max_div.MaxDivSolverBuilder(problem).with_preset(max_div.seconds(budget)).build()
                start = time.perf_counter()
                found = solver.solve().i_selected
                took = time.perf_counter() - start
                yield _heuristic(x, kind, distance, f"max-div {budget:g} s", found, took, best.upper_bound)
            for name, function in (("greedy", greedy_repmax), ("greedy+swap", local_search_repmax)):
                start = time.perf_counter()
                found = function(x, 64, distance=distance)
                took = time.perf_counter() - start
                yield _heuristic(x, kind, distance, name, found, took, best.upper_bound)


def _heuristic(
    x: Array, kind: str, distance: Distance, name: str, found: Indices, took: float, upper: float
) -> dict[str, Any]:
    value = mean_pairwise_distance(x, np.asarray(found, dtype=np.int64), distance=distance)
    return {
        "cloud": kind,
        "distance": distance,
        "n": 576,
        "k": 64,
        "method": name,
        "gap": 1 - value / upper,
        "seconds": took,
    }


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come, so that an interrupted run leaves what it has."""
    with (RESULTS / name).open("w", newline="") as file:
        writer: Any = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow(rounded)
            file.flush()
            print(
                " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()),
                flush=True,
            )


def bundled(limit: float, quick: bool) -> None:
    """The bundled model's tokens, through the command line."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--images", "2" if quick else "12", "--time-limit", str(limit), "--out", folder]
        if tokenprune(["gap", *options]) != 0:
            raise RuntimeError("tokenprune gap did not finish")
        for ending in ("csv", "png"):
            shutil.copyfile(Path(folder) / f"gap.{ending}", RESULTS / f"repmax_gap_bundled.{ending}")


def note(table: str, limit: float) -> None:
    """Write down where, with what and with which limit a table was measured."""
    path = RESULTS / "repmax.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    versions = package_versions()
    for name in ("ortools", "max-div"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    facts[table] = {
        "machine": device_name("cpu"),
        "cores": usable_cores(),
        "load_at_end": load_average(),
        "seconds_per_proof": limit,
        "versions": versions,
        "git": git_state(),
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run all tables, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tables", default="bundled,solvers,heuristics,proof", help="which, with commas between (default: all)"
    )
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per proof (default 60)")
    parser.add_argument("--quick", action="store_true", help="a few small cases, to see that it runs")
    args = parser.parse_args([] if argv is None else argv)
    RESULTS.mkdir(exist_ok=True)
    makers = {"proof": proofs, "solvers": solvers, "heuristics": heuristics}
    for table in args.tables.split(","):
        if table == "bundled":
            bundled(args.limit, args.quick)
            note(table, args.limit)
            continue
        rows = makers[table](args.limit, args.quick)
        first = next(iter(rows), None)
        if first is not None:
            write(f"repmax_{table}.csv", _chain(first, rows))
        note(table, args.limit)
    return 0


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
