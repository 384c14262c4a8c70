"""Objective against accuracy: the sets, the within-image correlation, and the bundled model end to end."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from tests.unit.analysis.clouds import bundled_model
from tokenprune import GreedyRepMax
from tokenprune.analysis import analyse_gap, kept_sets, within_correlation
from tokenprune.core.signals import signal_named
from tokenprune.evaluate import Sample, bundled_samples
from tokenprune.evaluate.answers import answer, ask_batches
from tokenprune.repmax import exact_repmax, mean_pairwise_distance, token_cloud


def test_sets_run_from_random_to_the_proved_optimum() -> None:
    x = torch.from_numpy(token_cloud("clusters", 40, 8, seed=1)).float()
    found = kept_sets(x, 10, time_limit=None)
    best = exact_repmax(x.double().numpy(), 10)
    assert found.proved
    assert found.values["exact"] == pytest.approx(best.value, rel=1e-9)
    assert found.gap("exact") == pytest.approx(0.0, abs=1e-8)
    greedy = set(found.sets["greedy"].tolist())
    for name, rows in found.sets.items():
        assert len(set(rows.tolist())) == 10
        assert rows.tolist() == sorted(rows.tolist())
        assert found.values[name] == pytest.approx(mean_pairwise_distance(x.double(), rows.tolist()))
        assert found.values[name] <= found.upper_bound * (1 + 1e-9)
    assert len(greedy & set(found.sets["random 25% #0"].tolist())) >= 8
    assert found.sets["random 50% #0"].tolist() != found.sets["random 50% #1"].tolist()
    order = ["random 100%", "random 75%", "random 50%", "random 25%"]
    many = kept_sets(x, 10, draws=60)
    means = [np.mean([many.gap(f"{kind} #{i}") for i in range(60)]) for kind in order]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(1.0, abs=0.1)  # the expectation of a random set
    with pytest.raises(ValueError, match=r"k must be in 2\.\.39"):
        kept_sets(x, 40)


def test_correlation_within_is_that_of_demeaned_columns() -> None:
    rng = np.random.default_rng(0)
    x, easy = rng.random((5, 30)), 10 * rng.random(30)
    y = x + 0.5 * rng.random((5, 30)) + easy - 3 * x.mean(0)
    found = within_correlation(x, y, [str(i) for i in range(30)])
    table = pd.DataFrame({"x": x.T.ravel(), "y": y.T.ravel(), "image": np.repeat(np.arange(30), 5)})
    centred = table[["x", "y"]] - table.groupby("image")[["x", "y"]].transform("mean")
    assert found.value == pytest.approx(float(centred["x"].corr(centred["y"])))
    assert found.low < found.value < found.high
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] < 0.2 < found.value  # what is common to an image would hide it
    flat = within_correlation(np.ones((3, 4)), rng.random((3, 4)), list("abcd"))
    assert np.isnan(flat.value)
    with pytest.raises(ValueError, match="two variants or more"):
        within_correlation([[1.0]], [[1.0]], ["a"])


def test_interval_of_the_correlation_is_that_of_a_plain_bootstrap_over_images() -> None:
    rng = np.random.default_rng(2)
    x, noise = rng.random((4, 40)), rng.random((4, 40))
    y = x + 2 * noise
    found = within_correlation(x, y, [str(i // 2).zfill(2) for i in range(40)])
    a, b = x - x.mean(0), y - y.mean(0)
    draws = []
    for _ in range(3000):
        columns = [2 * unit + j for unit in rng.integers(20, size=20) for j in range(2)]
        draws.append(np.corrcoef(a[:, columns].ravel(), b[:, columns].ravel())[0, 1])
    assert [found.low, found.high] == pytest.approx(list(np.percentile(draws, [2.5, 97.5])), abs=0.02)


def test_the_bundled_model_answers_on_the_sets() -> None:
    loaded, samples = bundled_model(), bundled_samples(5)
    report = analyse_gap(loaded, samples, 28, draws=1, time_limit=0.05, batch_size=3)
    (batch,) = ask_batches(loaded, samples, want=(signal_named("key"),))
    by_hand = [one.correct for one in answer(loaded, batch, GreedyRepMax(28))]
    assert report.accuracy["greedy"].value == pytest.approx(np.mean(by_hand))
    assert report.names[:2] == ("random 100%", "random 75%")
    assert report.gap["random 100%"].value > 0.5 > 0.01 > report.gap["greedy"].value >= report.gap["exact"].value
    assert "greedy" not in report.against_greedy
    difference = report.divergence["exact"].value - report.divergence["greedy"].value
    assert report.nearer_than_greedy["exact"].value == pytest.approx(difference)
    assert len(report.rows) == 5 * 10
    assert report.divergence["random 100%"].value > report.divergence["greedy"].value
    assert "points" in report.explanation[0]
    ax = Figure().subplots()
    assert report.plot(ax) is ax
    two = Sample(id="x", images=samples[0].images * 2, question="which ?", answers=("a",))
    with pytest.raises(ValueError, match="'x' has several images"):
        analyse_gap(loaded, [two], 28)
