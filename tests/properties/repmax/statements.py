"""The exact statements about RepMax, each as a function that raises AssertionError on a case where it fails.

Written as functions so that the same statement runs on the real code (test_statements.py) and on planted bugs
(test_mutants.py). What is false, and therefore not here: the greedy mean is monotone in k; a local optimum's mean is at
least the cloud's; a better first token makes a better greedy set.
"""

from itertools import combinations, pairwise
from typing import Any

import numpy as np

from tests.properties.repmax.clouds import METRICS, Array, Cloud, best_sum, close, greedy_share, reference_sum
from tokenprune.repmax import (
    certify,
    exact_repmax,
    greedy_repmax,
    local_search_repmax,
    mean_pairwise_distance,
    pair_sum,
    relax_round_repmax,
    reverse_greedy_repmax,
)
from tokenprune.repmax.local_search import swap_gains
from tokenprune.repmax.problem.objective import prepare
from tokenprune.repmax.problem.relaxation import active_set, frank_wolfe, into_box, on_plane, tangent_at
from tokenprune.repmax.proof.node import Node, exclusion_bounds

SLACK = 1.0 + 1e-9


def value_is_the_pair_sum(cloud: Cloud) -> None:
    members = np.arange(cloud.k)
    expected = reference_sum(cloud.matrix, members)
    scale = cloud.scale * cloud.k
    assert close(pair_sum(cloud.x, members, distance=cloud.distance), expected, scale)
    mean = mean_pairwise_distance(cloud.x, members, distance=cloud.distance)
    assert close(mean * max(1, cloud.k * (cloud.k - 1) // 2), expected, scale)


def greedy_keeps_its_share(cloud: Cloud) -> None:
    """B(k) of the optimum from every start, 1/2 for metrics, and the step inequality that B(k) is the product of."""
    matrix, k = cloud.matrix, cloud.k
    best = best_sum(matrix, k)
    scatter = best / k
    for start in ("farthest_mean", "pair", *range(cloud.n)):
        order = greedy_repmax(cloud.x, k, distance=cloud.distance, start=start)
        value = reference_sum(matrix, order)
        share = max(greedy_share(k), 0.5 if cloud.distance in METRICS and k > 1 else 0.0)
        assert value * SLACK >= share * best
        before = 0.0
        for i in range(1, k):
            after = reference_sum(matrix, order[: i + 1]) / (i + 1)
            assert scatter - after <= (1.0 - i / ((i + 1) * k)) * (scatter - before) + 1e-9 * scatter
            before = after


def swaps_end_in_a_local_optimum(cloud: Cloud, limit: int = 60) -> None:
    """Every accepted swap gains; at the end none does; (k-1)/(k+1) of the optimum; inside mean >= cross mean."""
    matrix, k, n = cloud.matrix, cloud.k, cloud.n
    best, largest = best_sum(matrix, k), cloud.scale * k
    for start in ("greedy", "random"):
        values = []
        for swaps in range(limit):
            found = local_search_repmax(
                cloud.x,
                k,
                distance=cloud.distance,
                start=start,
                max_swaps=swaps,
                seed=1,
            )
            values.append(reference_sum(matrix, found))
            if len(values) > 1 and values[-1] == values[-2]:
                break
        else:
            raise AssertionError("the search does not end")
        assert all(after > before for before, after in pairwise(values[:-1]))
        inside, outside = found.tolist(), sorted(set(range(n)) - set(found.tolist()))
        for old in inside:
            for new in outside:
                swapped = [new if i == old else i for i in inside]
                assert reference_sum(matrix, swapped) <= values[-1] + 1e-9 * largest
        assert values[-1] * (k + 1) * SLACK >= best * (k - 1)
        if outside and k > 1:
            cross = float(np.mean([matrix[i, j] for i in inside for j in outside]))
            assert values[-1] / (k * (k - 1) / 2) * SLACK >= cross - 1e-9 * largest


def swap_gains_are_differences(cloud: Cloud) -> None:
    """The table of gains equals what each exchange does to the sum."""
    matrix, k = cloud.matrix, cloud.k
    members, others = np.arange(k), np.arange(k, cloud.n)
    table = swap_gains(matrix, matrix[members].sum(axis=0), members, others)
    value = reference_sum(matrix, members)
    for a, new in enumerate(others):
        for b, old in enumerate(members):
            swapped = [new if i == old else i for i in members]
            assert close(table[a, b], reference_sum(matrix, swapped) - value, cloud.scale * k)


def heuristics_stay_below_and_bounds_above(cloud: Cloud) -> None:
    """greedy <= greedy + swaps <= optimum <= shifted bound <= convex bound <= tangent bound; 2/k after swaps."""
    x, k, distance = cloud.x, cloud.k, cloud.distance
    pairs = max(1, k * (k - 1) // 2)
    best = best_sum(cloud.matrix, k) / pairs
    room = 1e-9 * cloud.scale
    greedy = greedy_repmax(x, k, distance=distance)
    swapped = local_search_repmax(x, k, distance=distance)
    values = [mean_pairwise_distance(x, s, distance=distance) for s in (greedy, swapped)]
    assert values[0] <= values[1] + room <= best + 2 * room
    for other in (reverse_greedy_repmax, relax_round_repmax):
        found = other(x, k, distance=distance)
        assert mean_pairwise_distance(x, found, distance=distance) <= best + room
    efforts: tuple[Any, ...] = ("shifted", "convex", "tangent")
    bounds = [certify(x, swapped, distance=distance, effort=e).upper_bound for e in efforts]
    assert best <= bounds[0] + 1e-3 * room
    assert bounds[0] <= bounds[1] + room <= bounds[2] + 2 * room
    assert values[1] * SLACK >= (1.0 - 2.0 / max(k, 1)) * bounds[1] - room


def every_iterate_bounds_the_optimum(cloud: Cloud) -> None:
    """Frank-Wolfe, active set, any point of the plane: no bound below the optimum, no value above the bound."""
    problem = prepare(cloud.x, cloud.k, distance=cloud.distance, owner="test")
    if not 0 < problem.k < problem.n:
        return
    best = best_sum(cloud.matrix, cloud.k)
    matrix, linear, k = problem.matrix, problem.linear, problem.k
    rng = np.random.default_rng(problem.n)
    start = into_box(rng.random(problem.n), k)
    for steps in range(12):
        walked = frank_wolfe(matrix, linear, k, start, stop=-np.inf, steps=steps, tolerance=0.0)
        refined = active_set(matrix, linear, k, start, stop=-np.inf, tolerance=1e-12, limit=steps + 1)
        anywhere = tangent_at(matrix, linear, k, on_plane(rng.normal(size=problem.n) / problem.n + k / problem.n, k))
        for tangent in (walked, refined, anywhere):
            assert tangent.bound + problem.slack >= best
        for tangent in (walked, refined):
            assert tangent.value <= tangent.bound + problem.slack


def progress_encloses_the_optimum(cloud: Cloud) -> None:
    """value <= optimum <= bound after every node, the bound never rises, the value never falls."""
    pairs = max(1, cloud.k * (cloud.k - 1) // 2)
    best = best_sum(cloud.matrix, cloud.k) / pairs
    seen: list[tuple[float, float]] = []
    exact_repmax(
        cloud.x,
        cloud.k,
        distance=cloud.distance,
        solver="bnb",
        callback=lambda progress: seen.append((progress.value, progress.upper_bound)),
    )
    room = 1e-9 * cloud.scale
    for value, bound in seen:
        assert value <= best + room
        assert best <= bound + 1e-12 * best + room * 1e-3
    for (value, bound), (later_value, later_bound) in pairwise(seen):
        assert later_value >= value
        assert later_bound <= bound + room


def exact_equals_enumeration(cloud: Cloud) -> None:
    pairs = max(1, cloud.k * (cloud.k - 1) // 2)
    best = best_sum(cloud.matrix, cloud.k) / pairs
    scale = cloud.scale
    for solver in ("auto", "enumerate", "bnb"):
        result = exact_repmax(cloud.x, cloud.k, distance=cloud.distance, solver=solver)
        assert result.optimal
        assert close(result.value, best, scale)
        assert best <= result.upper_bound + 1e-12 * scale
        assert close(reference_sum(cloud.matrix, result.indices) / pairs, best, scale)


def ilp_equals_enumeration(cloud: Cloud) -> None:
    pairs = max(1, cloud.k * (cloud.k - 1) // 2)
    best = best_sum(cloud.matrix, cloud.k) / pairs
    result = exact_repmax(cloud.x, cloud.k, distance=cloud.distance, solver="ilp")
    assert abs(result.value - best) <= 1e-6 * cloud.scale


def exclusion_bounds_hold(cloud: Cloud) -> None:
    """For each point: the bounds on the sets with it and without it, at several points of tangency."""
    problem = prepare(cloud.x, cloud.k, distance=cloud.distance, owner="test")
    if not 0 < problem.k < problem.n:
        return
    rng = np.random.default_rng(problem.k)
    sets = [set(members) for members in combinations(range(problem.n), problem.k)]
    values = [reference_sum(cloud.matrix, members) for members in sets]
    node = Node.root(problem, np.zeros(problem.n))
    for _ in range(4):
        z = into_box(rng.normal(size=problem.n), problem.k)
        inside, outside = exclusion_bounds(tangent_at(*node.shifted(problem), problem.k, z), problem.k)
        for point in range(problem.n):
            with_it = [v for s, v in zip(sets, values, strict=True) if point in s]
            without = [v for s, v in zip(sets, values, strict=True) if point not in s]
            assert max(with_it) <= inside[point] + problem.slack
            assert max(without) <= outside[point] + problem.slack


def certificates_verify_and_tampering_shows(cloud: Cloud) -> None:
    """Untouched it verifies; with a smaller bound or another value, point or shift it does not, or proves less."""
    from dataclasses import replace

    members = local_search_repmax(cloud.x, cloud.k, distance=cloud.distance)
    best = best_sum(cloud.matrix, cloud.k) / max(1, cloud.k * (cloud.k - 1) // 2)
    rng = np.random.default_rng(cloud.n)
    for effort in ("tangent", "convex", "shifted", "exact"):
        certificate = certify(cloud.x, members, distance=cloud.distance, effort=effort)
        assert certificate.problems(cloud.x) == []
        if certificate.upper_bound == 0.0:
            continue
        nudge = 1e-6 * certificate.upper_bound
        assert not replace(certificate, upper_bound=certificate.upper_bound - nudge).verify(cloud.x)
        assert not replace(certificate, value=certificate.value + nudge).verify(cloud.x)
        for name in ("z", "u"):
            array: Array | None = getattr(certificate, name)
            if array is not None:
                bent: dict[str, Any] = {name: array + 0.3 * rng.normal(size=cloud.n)}
                forged = replace(certificate, **bent)
                assert not forged.verify(cloud.x) or forged.upper_bound >= best * (1.0 - 1e-9)


def lies_do_not_verify(cloud: Cloud) -> None:
    """The bound of a relaxation that was shifted too far is below the optimum; no verifier may accept it."""
    from dataclasses import replace

    from tokenprune.repmax.proof.verification import ProofError

    if not 1 < cloud.k < cloud.n:
        return
    problem = prepare(cloud.x, cloud.k, distance=cloud.distance, owner="test")
    best = best_sum(cloud.matrix, cloud.k) / problem.pairs
    honest = certify(cloud.x, np.arange(cloud.k), distance=cloud.distance, effort="convex")
    z = np.full(cloud.n, cloud.k / cloud.n)
    u = np.full(cloud.n, 10.0 * cloud.scale)
    shifted = Node.root(problem, z, shift=u).shifted(problem)
    bound = (tangent_at(*shifted, cloud.k, z).bound + problem.slack) / problem.pairs
    if honest.value <= bound < best * (1.0 - 1e-6):
        forged = replace(honest, z=z, u=u, upper_bound=bound, digest="")  # who forges makes no digest
        try:
            accepted = forged.verify(cloud.x)
        except ProofError:
            accepted = False
        assert not accepted
