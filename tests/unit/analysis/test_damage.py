"""Damage against counts by hand, calibration against scikit-learn, and the bundled model end to end."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve  # type: ignore[import-untyped]
from sklearn.metrics import brier_score_loss  # type: ignore[import-untyped]

from tests.unit.analysis.clouds import bundled_model
from tokenprune import GreedyRepMax, MIAlignment
from tokenprune.analysis import AnswerRecord, analyse_damage, analyse_turns, measure_calibration, measure_damage
from tokenprune.baselines import GridPool, Random
from tokenprune.core.signals import signal_named
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate import bundled_samples
from tokenprune.evaluate.answers import answer, ask_batches
from tokenprune.evaluate.scenes import second_questions


def records(correct: str, *, texts: str = "", confidence: float = 0.8, divergence: float = 0.0) -> list[AnswerRecord]:
    """One record per letter, "r"ight or "w"rong, each of its own image."""
    return [
        AnswerRecord(
            unit=str(i),
            text=(texts or correct)[i],
            correct=letter == "r",
            confidence=confidence,
            divergence=divergence,
        )
        for i, letter in enumerate(correct)
    ]


def test_flips_groups_and_probabilities_by_hand() -> None:
    dense = records("rrrrwwww", texts="abcdefgh")
    first = records("rrwwrwww", texts="abxyzfgh", confidence=0.5, divergence=0.25)
    second = records("rwwwwwww", texts="auxyzfgh", confidence=0.7, divergence=0.75)
    pooled = records("rwrwrwrw")
    report = measure_damage("x", dense, [first, second], pooled)
    value = {name: mean.value for name, mean in report.means.items()}
    assert value["accuracy"] == pytest.approx((3 + 1) / 16)
    assert value["difference"] == pytest.approx(4 / 16 - 0.5)
    assert value["right_to_wrong"] == pytest.approx((2 + 3) / 16)
    assert value["wrong_to_right"] == pytest.approx(1 / 16)
    assert value["agreement"] == pytest.approx((5 + 4) / 16)
    assert value["divergence"] == pytest.approx(0.5)
    assert value["confidence"] == pytest.approx(0.6)
    # hard: dense right, pooled wrong: places 1 and 3; easy: places 0 and 2
    assert value["hard"] == pytest.approx(np.mean([0.5, 0.0]))
    assert value["easy"] == pytest.approx(np.mean([1.0, 0.0]))
    assert value["dense_wrong"] == pytest.approx(np.mean([0.5, 0, 0, 0]))
    assert report.means["hard"].units == 2
    assert report.mcnemar is None
    alone = measure_damage("x", dense, [first])
    assert alone.mcnemar is not None
    assert (alone.mcnemar.only_first, alone.mcnemar.only_second) == (1, 2)
    assert alone.means["hard"].units == 0
    assert np.isnan(alone.means["easy"].value)


def test_without_damage_nothing_is_found() -> None:
    dense = records("rrww")
    report = measure_damage("same", dense, [dense], dense)
    assert report.p_value == 1.0
    assert report.means["difference"].value == report.means["right_to_wrong"].value == 0.0
    assert report.means["hard"].units == 0  # what pooling gets right is not hard


def test_calibration_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(400)
    correct = rng.random(400) < confidence**2
    found = measure_calibration(confidence, correct, [str(i // 2) for i in range(400)])
    share, mean = calibration_curve(correct, confidence, n_bins=10, strategy="uniform")
    np.testing.assert_allclose(found.accuracy[found.counts > 0], share)
    np.testing.assert_allclose(found.confidence[found.counts > 0], mean)
    counts = np.histogram(confidence, bins=10, range=(0, 1))[0]
    assert found.ece.value == pytest.approx(float((counts / 400 * abs(share - mean)).sum()))
    assert found.brier.value == pytest.approx(brier_score_loss(correct, confidence))
    assert found.ece.low < found.ece.value < found.ece.high
    assert found.ece.units == 200


def test_calibration_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    confidence, units = rng.random(60), [i // 3 for i in range(60)]
    correct = rng.random(60) < 0.5

    def ece(rows: list[int]) -> float:
        place = np.ceil(confidence[rows] * 10)
        return sum(abs((correct[rows] - confidence[rows])[place == b].sum()) for b in range(1, 11)) / len(rows)

    draws = [ece([3 * unit + j for unit in rng.integers(20, size=20) for j in range(3)]) for _ in range(3000)]
    found = measure_calibration(confidence, correct, [str(unit).zfill(2) for unit in units]).ece
    assert found.value == pytest.approx(ece(list(range(60))))
    assert [found.low, found.high] == pytest.approx(list(np.percentile(draws, [2.5, 97.5])), abs=0.02)


def test_runs_are_pooled_and_wrong_input_is_named() -> None:
    both = measure_calibration([[0.9, 0.1], [0.9, 0.1]], [[1, 0], [0, 1]], ["a", "b"])
    assert both.ece.value == pytest.approx(0.4)
    with pytest.raises(ValueError, match="give probabilities, not logits"):
        measure_calibration([2.0], [1], ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        measure_calibration([0.5], [1, 0], ["a"])
    with pytest.raises(ValueError, match="the same samples"):
        measure_damage("x", records("rr"), [records("r")])


def test_the_bundled_model_is_damaged_more_by_fewer_tokens() -> None:
    loaded, samples = bundled_model(), bundled_samples(12)
    strategies: dict[str, list[PruningStrategy]] = {
        "all": [GreedyRepMax(1.0)],
        "random(keep=128)": [Random(128, seed=seed) for seed in range(2)],
        "random(keep=4)": [Random(4, seed=seed) for seed in range(2)],
    }
    dense, everything, half, few = analyse_damage(loaded, samples, strategies, pooled=GridPool(16), batch_size=5)
    assert everything.means["divergence"].value == pytest.approx(0.0, abs=1e-9)
    assert everything.means["agreement"].value == 1.0
    assert 0.0 < half.means["divergence"].value < few.means["divergence"].value
    assert few.means["accuracy"].value < dense.means["accuracy"].value
    assert half.p_corrected >= half.p_value
    assert "from right to wrong" in few.explanation
    ax = Figure().subplots()
    assert few.plot(ax) is ax
    assert few.calibration.plot(ax) is ax
    # the divergence, from two answers by the formula
    (batch,) = ask_batches(loaded, samples, want=(signal_named("key"),))
    plain, pruned = (answer(loaded, batch, one) for one in (None, Random(4)))
    expected = [
        torch.nn.functional.kl_div(b.first, a.first, log_target=True, reduction="sum")
        for a, b in zip(plain, pruned, strict=True)
    ]
    again = analyse_damage(loaded, samples, {"x": [Random(4)]})[1]
    assert again.means["divergence"].value == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_a_second_question_suffers_where_the_first_one_chose() -> None:
    loaded, samples = bundled_model(), bundled_samples(16)
    second = second_questions(16)
    assert all(second[sample.id][0] != sample.question for sample in samples)
    reads = MIAlignment(8, metric="cosine", reduce="max", text="question")
    blind, reading = analyse_turns(loaded, samples, second, [GreedyRepMax(28), reads], batch_size=6)
    assert blind.means["difference"].value == 0.0
    assert blind.means["overlap"].value == 1.0
    assert reading.means["overlap"].value < 0.9
    assert reading.means["difference"].value == pytest.approx(
        reading.means["kept_for_first"].value - reading.means["kept_for_second"].value
    )
    assert 0.5 < blind.dense.value <= 1.0
    assert "second question" in reading.explanation
    ax = Figure().subplots()
    assert reading.plot(ax) is ax
    with pytest.raises(ValueError, match="has no second question"):
        analyse_turns(loaded, samples, {}, [reads])
