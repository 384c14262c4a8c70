import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch

from tests.unit.analysis.clouds import random_image, scenes
from tokenprune import Tokens
from tokenprune.analysis import (
    NO_CONTROLS,
    AnalysedImage,
    Controls,
    RedundancyReport,
    analyse_redundancy,
    measure_redundancy,
)

matplotlib.use("agg")


def compare(images: Iterable[AnalysedImage], controls: Controls = Controls()) -> RedundancyReport:  # noqa: B008
    (report,) = analyse_redundancy(images, [controls])
    return report


def image(visual: torch.Tensor, text: torch.Tensor, name: str = "a") -> AnalysedImage:
    return AnalysedImage(id=name, tokens=Tokens(visual, text=text))


def test_measures_against_loops() -> None:
    x = random_image(5).tokens.visual
    found = measure_redundancy(x, tau=0.3)
    rows = [np.array(row) / math.sqrt(sum(v * v for v in row)) for row in x.double().tolist()]
    pairs = [float(a @ b) for a, b in combinations(rows, 2)]
    near = [any(i != j and rows[i] @ rows[j] > 0.3 for j in range(len(rows))) for i in range(len(rows))]
    norms = np.array([math.sqrt(sum(v * v for v in row)) for row in x.double().tolist()])
    eigenvalues = np.linalg.eigvalsh(x.double().T @ x.double()).clip(0)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    assert found.tokens == len(rows)
    assert found.mean_cosine == pytest.approx(np.mean(pairs))
    assert (found.cosine_q05, found.cosine_q95) == pytest.approx(tuple(np.quantile(pairs, [0.05, 0.95])))
    assert 0 < found.neighbours < 1
    assert found.neighbours == pytest.approx(np.mean(near))
    assert found.rank_share == pytest.approx(math.exp(-(p * np.log(p)).sum()) / len(rows))
    assert found.participation_share == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum() / len(rows))
    assert found.norm_spread == pytest.approx(norms.std() / norms.mean())


def test_orthogonal_and_identical_tokens() -> None:
    apart, same = measure_redundancy(2 * torch.eye(6)), measure_redundancy(torch.ones(6, 3))
    assert (apart.mean_cosine, apart.neighbours, apart.norm_spread) == (0.0, 0.0, 0.0)
    assert apart.rank_share == pytest.approx(1.0)
    assert same.mean_cosine == pytest.approx(1.0)
    assert same.neighbours == 1.0
    assert same.participation_share == pytest.approx(1 / 6)


def test_one_cloud_on_both_sides_shows_no_difference_once_counts_are_equal() -> None:
    # Same distribution, 200 against 20 tokens: without control the rank per token differs much.
    generator = torch.Generator().manual_seed(0)
    images = [
        image(torch.randn(200, 16, generator=generator), torch.randn(20, 16, generator=generator), f"i{i}")
        for i in range(30)
    ]
    raw = compare(images, NO_CONTROLS).difference["rank_share"]
    fair = compare(images, Controls(centre=False)).difference["rank_share"]
    assert raw.high < -0.3
    assert abs(fair.value) < 0.02
    assert fair.low < 0.01


def test_centring_takes_a_common_direction_out() -> None:
    generator = torch.Generator().manual_seed(1)
    visual, text = torch.randn(60, 16, generator=generator) + 5, torch.randn(60, 16, generator=generator)
    raw = compare([image(visual, text)], Controls(unit=False, centre=False))
    centred = compare([image(visual, text)], Controls(unit=False))
    assert raw.difference["mean_cosine"].value > 0.8
    assert abs(centred.difference["mean_cosine"].value) < 0.01
    assert centred.visual["mean_cosine"].value == pytest.approx(-1 / 59, abs=0.005)


def test_repeated_words_are_dropped_and_unit_length_removes_the_spread_of_norms() -> None:
    visual, text = torch.eye(4, 8), torch.eye(8)[[4, 5, 6, 4, 4]] * torch.tensor([[1.0], [9.0], [1.0], [1.0], [1.0]])
    kept = compare([image(visual, text)], NO_CONTROLS)
    unique = compare([image(visual, text)], replace(NO_CONTROLS, unique=True))
    assert (kept.text["tokens"].value, kept.text["neighbours"].value) == (5, 0.6)
    assert (unique.text["tokens"].value, unique.text["neighbours"].value) == (3, 0.0)
    unit = compare([image(visual, text)], replace(NO_CONTROLS, unique=True, unit=True))
    assert unique.text["participation_share"].value < 0.5
    assert unit.text["participation_share"].value == pytest.approx(1.0)
    assert unit.text["norm_spread"].value == unique.text["norm_spread"].value > 0.5


def test_draws_depend_on_the_image_and_not_on_its_place() -> None:
    images = [random_image(i, name=f"i{i}") for i in range(3)]
    forward, backward = compare(images), compare(reversed(images))
    assert forward.visual["mean_cosine"].value == pytest.approx(backward.visual["mean_cosine"].value, abs=1e-12)
    other = compare(images, Controls(seed=1))
    assert forward.visual["mean_cosine"].value != other.visual["mean_cosine"].value


def test_the_scenes_and_the_drawing() -> None:
    from matplotlib.figure import Figure

    report = compare(scenes())
    assert report.visual["tokens"].value == report.text["tokens"].value < 20
    assert report.histogram.sum(1) == pytest.approx([1.0, 1.0])
    centres = (np.arange(80) + 0.5) / 40 - 1
    assert report.histogram @ centres == pytest.approx(
        [report.visual["mean_cosine"].value, report.text["mean_cosine"].value], abs=0.013
    )
    difference = report.difference["rank_share"].value
    assert difference == pytest.approx(report.visual["rank_share"].value - report.text["rank_share"].value)
    ax = Figure().subplots()
    assert report.plot(ax).get_title(loc="left") == "unique, equal counts, unit, centred"


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"two rows or more, got \(1, 4\)"):
        measure_redundancy(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="tau must lie between -1 and 1, got 1.0"):
        measure_redundancy(torch.eye(3), tau=1.0)
    with pytest.raises(ValueError, match="draws must be 1 or more, got 0"):
        Controls(draws=0)
    with pytest.raises(ValueError, match="'a' has no Tokens.text"):
        compare([AnalysedImage(id="a", tokens=Tokens(torch.eye(3)))])
    with pytest.raises(ValueError, match="3 visual and 1 text tokens .* longer prompt"):
        compare([image(torch.eye(3), torch.ones(4, 3))])
    with pytest.raises(ValueError, match="there are no images"):
        compare([])
    with pytest.raises(ValueError, match="settings is empty"):
        analyse_redundancy([], [])


def test_several_settings_in_one_pass_give_what_each_gives_alone() -> None:
    images = [random_image(i, name=f"i{i}") for i in range(3)]
    both = analyse_redundancy(iter(images), [NO_CONTROLS, Controls()])
    for report, controls in zip(both, [NO_CONTROLS, Controls()], strict=True):
        alone = compare(images, controls)
        assert (report.visual, report.text, report.difference) == (alone.visual, alone.text, alone.difference)


def test_what_the_controls_take_out_by_hand() -> None:
    tokens = random_image(2, n=24, m=7).tokens
    assert tokens.text is not None
    centred = compare([image(tokens.visual, tokens.text)], replace(NO_CONTROLS, centre=True))
    expected = measure_redundancy(tokens.visual.double() - tokens.visual.double().mean(0))
    assert centred.visual["mean_cosine"].value == pytest.approx(expected.mean_cosine, rel=1e-9)
    assert centred.visual["rank_share"].value == pytest.approx(expected.rank_share, rel=1e-9)
    equal = compare([image(tokens.visual, tokens.text)], replace(NO_CONTROLS, equal_counts=True))
    assert equal.visual["tokens"].value == equal.text["tokens"].value == 7
    one, two = (compare([image(tokens.visual, tokens.text, name)]) for name in ("a", "b"))
    assert one.visual["mean_cosine"].value != two.visual["mean_cosine"].value  # another image, another draw
