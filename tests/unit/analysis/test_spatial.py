import math
from dataclasses import replace
from fractions import Fraction

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.analysis.clouds import random_image, scenes
from tokenprune import GreedyRepMax, Selection, Tokens
from tokenprune.analysis import AnalysedImage, analyse_spatial, letterboxed, measure_spatial, padding_tokens
from tokenprune.baselines import FastV, Random, UniformGrid

matplotlib.use("agg")


def kept(*indices: int, total: int) -> Selection:
    return Selection(indices=torch.tensor(indices), total=total)


def test_measures_against_a_loop() -> None:
    image = random_image()  # 4 rows, 6 columns, objects (0, 1, 2) and (7, 8)
    chosen = [0, 7, 11, 23]
    found = measure_spatial(image, kept(*chosen, total=24))
    cells = [divmod(i, 6) for i in range(24)]

    def mean(numbers: list[float]) -> float:
        return sum(numbers) / len(numbers)

    def radius(i: int) -> float:
        return math.dist(cells[i], (1.5, 2.5))

    assert found.kept_share == pytest.approx(4 / 24)
    assert found.row_shift == pytest.approx((mean([cells[i][0] for i in chosen]) - 1.5) / 4)
    assert found.column_shift == pytest.approx((mean([cells[i][1] for i in chosen]) - 2.5) / 6)
    assert found.centre_ratio == pytest.approx(mean([radius(i) for i in chosen]) / mean([radius(i) for i in range(24)]))
    assert found.object_tokens == pytest.approx(2 / 5)
    assert found.object_lift == pytest.approx((2 / 5) / (4 / 24))
    assert found.objects_hit == 1.0
    assert measure_spatial(image, kept(8, 20, total=24)).objects_hit == 0.5


def test_everything_kept_has_no_bias_and_the_top_row_has_all_of_it() -> None:
    image = random_image()
    everything = measure_spatial(image, kept(*range(24), total=24))
    assert (everything.row_shift, everything.column_shift, everything.centre_ratio) == (0.0, 0.0, 1.0)
    assert (everything.object_tokens, everything.object_lift, everything.objects_hit) == (1.0, 1.0, 1.0)
    assert measure_spatial(image, kept(*range(6), total=24)).row_shift == pytest.approx(-1.5 / 4)


def test_heat_map_sums_to_what_was_kept_and_profiles_to_their_lengths() -> None:
    images = [random_image(i, name=f"i{i}") for i in range(5)]
    greedy, random = analyse_spatial(iter(images), [GreedyRepMax(7), Random(5)])
    assert greedy.heat.shape == (4, 6)
    assert greedy.heat.sum() == pytest.approx(7)
    assert random.heat.sum() == pytest.approx(5)
    for i in range(24):
        expected = np.mean([i in GreedyRepMax(7).select(image.tokens).indices.tolist() for image in images])
        assert greedy.heat.flat[i] == pytest.approx(expected)
    assert greedy.row_profile.sum() == pytest.approx(4)
    assert greedy.column_profile.sum() == pytest.approx(6)
    share = greedy.heat.sum(1) / 7
    assert greedy.row_bias == pytest.approx(0.5 * np.abs(share - 1 / 4).sum())
    assert greedy.means["kept_share"].value == pytest.approx(7 / 24)


def test_rows_of_a_subset_stand_at_their_original_places() -> None:
    whole = random_image()
    part = AnalysedImage(id="p", tokens=whole.tokens.take(torch.arange(12, 24)))
    found = measure_spatial(part, kept(0, total=12))
    assert found.row_shift == pytest.approx((2 - 2.5) / 4)
    (report,) = analyse_spatial([part], [GreedyRepMax(12)])
    assert report.heat.sum(1).tolist() == [0.0, 0.0, 6.0, 6.0]


def test_no_objects_no_recall() -> None:
    found = measure_spatial(replace(random_image(), objects=()), kept(0, total=24))
    assert all(map(math.isnan, (found.object_tokens, found.object_lift, found.objects_hit)))


def test_controls_show_no_bias_on_the_scenes() -> None:
    from matplotlib.figure import Figure

    uniform, random, greedy = analyse_spatial(scenes(), [UniformGrid(64), Random(64), GreedyRepMax(64)])
    assert abs(uniform.means["row_shift"].value) < 0.05
    assert abs(random.means["row_shift"].value) < 0.05
    assert random.means["object_lift"].value == pytest.approx(1.0, abs=0.35)
    assert greedy.means["objects_hit"].units == 6
    ax = Figure().subplots()
    assert greedy.plot(ax).get_title(loc="left") == "greedy_repmax(keep=64)"


def test_bad_input_says_what_to_do() -> None:
    image = random_image()
    with pytest.raises(ValueError, match="made from 9 tokens but image 'a' has 24"):
        measure_spatial(image, kept(0, total=9))
    flat = AnalysedImage(id="flat", tokens=Tokens(torch.eye(4)))
    with pytest.raises(ValueError, match=r"'flat' has no Tokens.grid"):
        analyse_spatial([flat], [GreedyRepMax(2)])
    square = AnalysedImage(id="b", tokens=Tokens(torch.eye(4), grid=(2, 2)))
    with pytest.raises(ValueError, match="'b' has a raster of 2 x 2 but the images before it 4 x 6"):
        analyse_spatial([image, square], [GreedyRepMax(2)])
    with pytest.raises(ValueError, match="there are no images"):
        analyse_spatial([], [GreedyRepMax(2)])
    with pytest.raises(ValueError, match="acts inside the language model"):
        analyse_spatial([image], [FastV(4)])


def test_padding_is_what_no_pixel_of_the_picture_touches() -> None:
    for width, height, rows, columns in [
        (8, 4, 4, 2),
        (5, 13, 16, 16),
        (336, 120, 24, 24),
        (7, 7, 3, 5),
        (100, 99, 4, 4),
    ]:
        square = np.asarray(letterboxed(Image.new("RGB", (width, height), (255, 0, 0))))[..., 0] == 255
        side = max(width, height)
        untouched = []
        for token in range(rows * columns):
            i, j = divmod(token, columns)
            # every pixel that the token's part of the square overlaps, in exact fractions
            ys = [y for y in range(side) if Fraction(i * side, rows) < y + 1 and y < Fraction((i + 1) * side, rows)]
            xs = [
                x for x in range(side) if Fraction(j * side, columns) < x + 1 and x < Fraction((j + 1) * side, columns)
            ]
            if not square[np.ix_(ys, xs)].any():
                untouched.append(token)
        assert list(padding_tokens((width, height), (rows, columns))) == untouched
    with pytest.raises(ValueError, match="must be positive"):
        padding_tokens((0, 4), (2, 2))


def test_kept_tokens_in_the_padding_are_counted() -> None:
    image = replace(random_image(n=24), padding=(0, 1, 2, 3, 4, 5))
    found = measure_spatial(image, Selection(indices=torch.tensor([0, 5, 7, 20]), total=24))
    assert (found.padding_kept, found.padding_share) == (0.5, 0.25)
    assert np.isnan(measure_spatial(random_image(n=24), Selection(indices=torch.tensor([0]), total=24)).padding_kept)
