import math
from dataclasses import asdict, replace

import matplotlib
import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from tests.unit.analysis.clouds import random_image, scenes
from tokenprune import MIAlignment, Tokens
from tokenprune.alignment import alignment_score
from tokenprune.analysis import AnalysedImage, analyse_alignment, measure_alignment, split_score

matplotlib.use("agg")


def test_parts_add_up_to_the_score_and_shares_to_one() -> None:
    image = random_image()
    assert image.tokens.text is not None
    parts = split_score(image.tokens.visual, image.tokens.text)
    torch.testing.assert_close(
        parts.total, alignment_score(image.tokens.visual.double(), image.tokens.text.double()), rtol=0, atol=1e-12
    )
    assert sum(parts.variance_shares) == pytest.approx(1.0)


def test_variance_shares_of_constructed_clouds() -> None:
    # Orthogonal coordinates: the first carries the text, the second is padded so that norms are what we want.
    text = torch.tensor([[1.0, 0.0]])
    along = torch.tensor([-1.0, 0.0, 1.0])
    equal_norms = torch.stack([along, (4.0 - along.square()).sqrt()], 1)
    assert split_score(equal_norms, text).variance_shares == pytest.approx((0.0, 1.0))
    no_text = torch.stack([torch.zeros(3), torch.tensor([1.0, 2.0, 5.0])], 1)
    assert split_score(no_text, text).variance_shares == (1.0, 0.0)
    # norm part -(x^2), text part 2x on x = 0, 1, 3: by hand
    x = np.array([0.0, 1.0, 3.0])
    total = -(x**2) + 2 * x
    expected = np.cov(-(x**2), total)[0, 1] / np.var(total, ddof=1)
    shares = split_score(torch.tensor(x)[:, None], torch.ones(1, 1, dtype=torch.float64)).variance_shares
    assert shares == pytest.approx((expected, 1 - expected))
    assert all(map(math.isnan, split_score(torch.ones(3, 2), text).variance_shares))


@pytest.mark.parametrize(
    "strategy",
    [MIAlignment(0.75), MIAlignment(10, text="question"), MIAlignment(0.5, metric="cosine", reduce="max")],
    ids=repr,
)
def test_measures_against_a_loop(strategy: MIAlignment) -> None:
    image = random_image()
    tokens, n = image.tokens, image.tokens.n
    measured = measure_alignment(image, strategy)

    def dropped(scores: list[float]) -> set[int]:
        kept = strategy.select(tokens).kept
        return set(sorted(range(n), key=lambda i: (-scores[i], i))[kept:])

    def scores_of(some: Tokens) -> list[float]:
        assert some.text is not None
        assert some.question is not None
        text = some.text if strategy.text == "prompt" else some.text[some.question]
        return alignment_score(some.visual, text, metric=strategy.metric, reduce=strategy.reduce).tolist()

    def spearman(a: list[float], b: list[float]) -> float:
        return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])

    scores = scores_of(tokens)
    small = [-sum(x * x for x in row) for row in tokens.visual.tolist()]
    out, out_norm = dropped(scores), dropped(small)
    swapped = [scores_of(other) for other in image.others]
    objects = {0, 1, 2, 7, 8}
    assert measured.norm_correlation == pytest.approx(spearman(scores, small))
    assert measured.norm_overlap == pytest.approx(len(out & out_norm) / len(out))
    assert measured.dropped_share == len(out) / n
    changed = [len(out - dropped(other)) for other in swapped]
    assert measured.question_change == pytest.approx(np.mean(changed) / len(out))
    assert measured.question_change_kept == pytest.approx(np.mean(changed) / (n - len(out)))
    assert measured.question_correlation == pytest.approx(np.mean([spearman(scores, other) for other in swapped]))
    assert measured.object_share == pytest.approx(5 / n)
    assert measured.object_dropped == pytest.approx(len(out & objects) / len(out))
    assert measured.object_dropped_by_norm == pytest.approx(len(out_norm & objects) / len(out))
    assert math.isnan(measured.norm_share) == (strategy.metric != "sqeuclidean")

    assert tokens.text is not None
    assert tokens.question is not None
    words = tokens.text.tolist()
    if strategy.text == "question":
        words = [row for row, asked in zip(words, tokens.question.tolist(), strict=True) if asked]
    centre = [sum(column) / len(words) for column in zip(*words, strict=True)]
    by_text = [2 * sum(a * b for a, b in zip(row, centre, strict=True)) for row in tokens.visual.tolist()]
    out_text = dropped(by_text)
    assert measured.object_dropped_by_text == pytest.approx(len(out_text & objects) / len(out))
    if strategy.metric == "sqeuclidean":
        total = [a + b for a, b in zip(small, by_text, strict=True)]
        assert measured.norm_share == pytest.approx(np.cov(small, total)[0, 1] / np.var(total, ddof=1))
        assert measured.text_share == pytest.approx(1 - measured.norm_share)
    lengths = [math.sqrt(sum(x * x for x in row)) for row in words]
    norms = [math.sqrt(-x) for x in small]
    assert measured.norm_ratio == pytest.approx(np.mean(norms) / np.mean(lengths))
    inside, outside = ([x for i, x in enumerate(small) if (i in objects) == side] for side in (True, False))
    assert measured.object_norm_ratio == pytest.approx(np.mean(inside) / np.mean(outside))


def test_a_question_that_says_nothing_changes_nothing() -> None:
    image = random_image()
    assert image.tokens.text is not None
    same = replace(image.tokens, text=image.tokens.text.flip(0))  # the mean, hence the score, is the same
    measured = measure_alignment(replace(image, others=(same,)), MIAlignment(0.5))
    assert measured.question_change == measured.question_change_kept == 0.0
    assert measured.question_correlation == pytest.approx(1.0)


def test_large_norms_make_stage_one_drop_the_largest_norms() -> None:
    image = random_image(n=200, d=32)
    grown = replace(image, tokens=replace(image.tokens, visual=100 * image.tokens.visual), others=())
    measured = measure_alignment(grown, MIAlignment(0.8))
    assert measured.norm_correlation > 0.999
    assert measured.norm_overlap > 0.97
    assert measured.norm_share == pytest.approx(1.0, abs=0.02)
    assert measured.norm_ratio > 100


def test_without_objects_or_other_questions_those_measures_are_undefined() -> None:
    image = random_image(others=0)
    measured = asdict(measure_alignment(replace(image, objects=()), MIAlignment(0.5)))
    undefined = {name for name, value in measured.items() if math.isnan(value)}
    assert undefined == {name for name in measured if name.startswith(("object", "question"))}
    (report,) = analyse_alignment([replace(image, objects=())], [MIAlignment(0.5)])
    assert report.means["question_change"].units == 0
    assert len(report.explanation) == 2


def test_several_images_and_the_drawing() -> None:
    from matplotlib.figure import Figure

    images = [random_image(seed, name=f"i{seed}") for seed in range(4)]
    first, second = analyse_alignment(iter(images), [MIAlignment(0.5), MIAlignment(0.5, metric="cosine")])
    assert first.ids == ("i0", "i1", "i2", "i3")
    mean = first.means["norm_overlap"]
    assert mean.value == pytest.approx(np.mean([m.norm_overlap for m in first.images]))
    assert mean.low <= mean.value <= mean.high
    assert mean.units == 4
    assert "Another question changes" in " ".join(second.explanation)
    ax = Figure().subplots()
    assert first.plot(ax) is ax
    assert len(ax.get_yticklabels()) == 7
    parts = split_score(images[0].tokens.visual, torch.zeros(1, 8))
    assert parts.plot(Figure().subplots(), objects=images[0].on_object, dropped=0.2).get_legend() is not None


def test_on_the_bundled_model_norms_decide_more_than_the_text_and_cards_are_dropped() -> None:
    (report,) = analyse_alignment(scenes(), [MIAlignment(0.8)])
    mean = report.means
    assert mean["norm_share"].value > 0.5
    assert mean["norm_correlation"].value > 0.6
    assert mean["question_change_kept"].value < 0.1
    assert mean["object_dropped"].value > 1.5 * mean["object_share"].value
    assert mean["object_share"].value == pytest.approx(np.mean([9 * len(image.objects) / 256 for image in scenes()]))


def test_bad_input_says_what_to_do() -> None:
    image = random_image()
    with pytest.raises(ValueError, match=r"mi_alignment\(keep=1.0\) drops none of the 24 tokens .* smaller keep"):
        measure_alignment(image, MIAlignment(1.0))
    with pytest.raises(ValueError, match="strategies is empty"):
        analyse_alignment([image], [])
    with pytest.raises(ValueError, match="there are no images"):
        analyse_alignment([], [MIAlignment(0.5)])
    with pytest.raises(ValueError, match=r"text must have at least one row of width 8, got \(0, 8\)"):
        split_score(image.tokens.visual, torch.zeros(0, 8))
    with pytest.raises(ValueError, match="visual holds NaN"):
        split_score(torch.full((2, 2), math.nan), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"objects must list rows in 0..23, .* got \(24,\)"):
        AnalysedImage(id="x", tokens=image.tokens, objects=((24,),))
    with pytest.raises(ValueError, match="others must show the same image"):
        AnalysedImage(id="x", tokens=image.tokens, others=(Tokens(torch.zeros(3, 8)),))
