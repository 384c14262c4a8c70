import math

import numpy as np
import pytest

from tokenprune.evaluate.statistics import agreement, flips, mean_interval, paired_difference


def naive_percentile_interval(values: list[float], units: list[str], draws: int, seed: int) -> tuple[float, float]:
    """Draw whole units with replacement, in plain Python."""
    rng = np.random.default_rng(seed)
    groups = {unit: [v for v, u in zip(values, units, strict=True) if u == unit] for unit in sorted(set(units))}
    names = list(groups)
    means = []
    for _ in range(draws):
        chosen = [value for i in rng.integers(len(names), size=len(names)) for value in groups[names[i]]]
        means.append(sum(chosen) / len(chosen))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_interval_matches_a_naive_bootstrap_over_unequal_units() -> None:
    rng = np.random.default_rng(3)
    units = [f"image{i}" for i in range(30) for _ in range(1 + i % 4)]
    values = [float(rng.random() < 0.3 + 0.4 * (int(unit[5:]) % 2)) for unit in units]
    found = mean_interval(values, units)
    low, high = naive_percentile_interval(values, units, draws=4000, seed=1)
    assert found.value == pytest.approx(sum(values) / len(values))
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)
    assert found.units == 30


def test_sharing_units_widens_the_interval() -> None:
    values = [float(i % 8 < 4) for i in range(160)]
    alone = mean_interval(values, [str(i) for i in range(160)])
    shared = mean_interval(values, [str(i // 4) for i in range(160)])
    assert shared.high - shared.low > 1.5 * (alone.high - alone.low)


def test_pairing_takes_the_common_part_out() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(300) < 0.5
    better = base | (rng.random(300) < 0.1)
    units = [str(i) for i in range(300)]
    paired = paired_difference(better, [base, base], units)
    assert paired.value == pytest.approx(better.mean() - base.mean())
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < (mean_interval(base, units).high - mean_interval(base, units).low)


def test_reference_is_averaged_over_its_runs() -> None:
    found = paired_difference([1, 1, 0, 0], [[1, 0, 0, 0], [0, 0, 0, 1]], ["a", "b", "c", "d"])
    assert found.value == pytest.approx(0.5 - 0.25)


def test_covers_the_true_difference_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        method, reference = rng.random(80) < 0.6, rng.random(80) < 0.5
        found = paired_difference(method, reference, [str(i) for i in range(80)])
        hits += found.low <= 0.1 <= found.high
    assert hits >= 51  # fewer than 85% of 60 would be far from 95%


def test_no_difference_gives_a_point_and_no_warning() -> None:
    found = paired_difference([1, 0, 1], [[1, 0, 1]], ["a", "b", "c"])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_one_unit_has_no_interval() -> None:
    found = mean_interval([1.0, 0.0], ["a", "a"])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_same_input_same_interval() -> None:
    values, units = [0.0, 1.0, 1.0, 0.0, 1.0], list("abcde")
    assert mean_interval(values, units) == mean_interval(values, units)


@pytest.mark.parametrize(("values", "units"), [([], []), ([1.0], ["a", "b"])])
def test_lengths_must_fit(values: list[float], units: list[str]) -> None:
    with pytest.raises(ValueError, match="one value per unit"):
        mean_interval(values, units)


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="method has 2 samples but reference 3"):
        paired_difference([1, 0], [[1, 0, 1]], ["a", "b"])


def test_flips_and_agreement() -> None:
    assert flips([True, False, True, False], [True, True, False, False]) == (1, 1)
    assert agreement(["Seven", "red.", "x"], ["seven", "red", "y"]) == [True, True, False]
