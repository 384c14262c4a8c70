"""Information where it is known in closed form, by counting, and on the bundled scenes."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.stats import norm

from tests.unit.analysis.clouds import random_image, scenes
from tokenprune import MIAlignment
from tokenprune.analysis import (
    analyse_information,
    coordinate_information,
    label_information,
    measure_information,
    question_information,
)


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.8, 0.95])
def test_gaussian_coordinates_have_the_information_of_the_formula(rho: float) -> None:
    rng = np.random.default_rng(0)
    text = rng.standard_normal(3000)
    token = rho * text + math.sqrt(1 - rho**2) * rng.standard_normal(3000)
    found = coordinate_information(torch.from_numpy(token)[None], torch.from_numpy(text)[None])
    assert float(found) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.05)


def test_it_ranks_by_dependence_and_not_by_length() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 2000, generator=generator)
    noise = torch.randn(3, 2000, generator=generator)
    visual = torch.stack([noise[0], 0.6 * text[0] + noise[1], 3.0 * text[0] + noise[2]])
    found = coordinate_information(visual, text)
    assert found.argsort().tolist() == [0, 1, 2]
    scaled = coordinate_information(visual * torch.tensor([[100.0], [0.01], [7.0]]), text)
    torch.testing.assert_close(scaled, found, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="share a width of at least 8"):
        coordinate_information(torch.ones(2, 4), torch.ones(1, 4))


def test_a_score_says_of_a_label_what_integration_says() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(4000) < 0.3
    scores = rng.standard_normal(4000) + 2.0 * labels

    def integrand(x: float) -> float:
        parts = (0.7 * norm.pdf(x), 0.3 * norm.pdf(x, loc=2.0))
        whole = sum(parts)
        return float(sum(p * math.log2(p / (whole * share)) for p, share in zip(parts, (0.7, 0.3), strict=True)))

    expected = quad(integrand, -8, 10)[0]
    assert label_information(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=0.03)
    shuffled = torch.from_numpy(rng.permutation(scores))
    assert label_information(shuffled, torch.from_numpy(labels)) < 0.03
    assert label_information(torch.from_numpy(scores), torch.ones(4000, dtype=torch.bool)) == 0.0


def test_what_the_question_says_by_counting() -> None:
    kept = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    found, independent = question_information(kept)
    assert found == pytest.approx((0 + 1 + 1 + 0) / 4)
    draws = torch.rand(4, 20000, generator=torch.Generator().manual_seed(0)) < 0.5
    assert question_information(draws)[0] == pytest.approx(independent, abs=0.01)
    with pytest.raises(ValueError, match="two questions or more"):
        question_information(kept[:1])


def test_one_image_against_its_parts() -> None:
    image, strategy = random_image(3, n=24, d=64), MIAlignment(12)
    found = measure_information(image, strategy)
    selection = strategy.select(image.tokens)
    text = image.tokens.text
    assert text is not None
    estimate = coordinate_information(image.tokens.visual, text)
    best = set(estimate.argsort(descending=True)[:12].tolist())
    assert found.kept_overlap == len(best & set(selection.indices.tolist())) / 12
    assert found.kept_share == 0.5
    assert found.object_entropy == pytest.approx(-(5 / 24) * math.log2(5 / 24) - (19 / 24) * math.log2(19 / 24))
    bare = measure_information(random_image(3, n=24, d=64, others=0), strategy)
    assert math.isnan(bare.question_bits)
    assert bare.rank_alignment == found.rank_alignment


def test_the_bundled_scenes() -> None:
    report = analyse_information(scenes(6)[:1], MIAlignment(0.8))
    mean = report.means
    assert mean["by_chance"].value < mean["by_norm"].value < mean["object_entropy"].value
    assert 0.0 < mean["question_bits"].value < mean["question_bits_independent"].value
    assert len(report.explanation) == 3
    ax = Figure().subplots()
    assert report.plot(ax) is ax
