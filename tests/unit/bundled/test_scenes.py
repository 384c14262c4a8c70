import itertools
import subprocess
import sys

import numpy as np
import pytest

from tokenprune.bundled import load_scenes, make_scene
from tokenprune.bundled.cards import CARD, GRID, PATCH, lay_out, patch_region
from tokenprune.bundled.sources import SPLITS, digit_images, digit_indices, photo_strip, strip_columns
from tokenprune.bundled.vocabulary import COLOURS, REGIONS


def test_scenes_are_deterministic() -> None:
    first, again = load_scenes("test", count=3, seed=4), load_scenes("test", count=5, seed=4)
    for one, other in zip(first, again, strict=False):
        assert one.id == other.id
        assert one.cards == other.cards
        assert one.questions == other.questions
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_scenes_differ_between_seeds_indices_and_splits() -> None:
    scenes = [make_scene("test", 0, 0), make_scene("test", 0, 1), make_scene("test", 1, 0), make_scene("train", 0, 0)]
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_splits_share_no_digit_and_no_background(one: str, other: str) -> None:
    assert not set(digit_indices(one)) & set(digit_indices(other))
    assert not set(strip_columns(one)) & set(strip_columns(other))


def test_sources_hold_what_the_split_says() -> None:
    for split in SPLITS:
        assert sum(len(digit_images(split, digit)) for digit in range(10)) == len(digit_indices(split))
        assert all(len(digit_images(split, digit)) >= 15 for digit in range(10))
        assert photo_strip(split, 0).shape == (427, len(strip_columns(split)), 3)
    ours = {image.tobytes() for digit in range(10) for image in digit_images("test", digit)}
    theirs = {image.tobytes() for digit in range(10) for image in digit_images("train", digit)}
    assert len(ours & theirs) == 0


def test_cards_stand_apart_on_the_patch_grid_in_their_region() -> None:
    for seed in range(100):
        cards = lay_out(np.random.default_rng(seed))
        assert 3 <= len(cards) <= 6
        covered = [patch for card in cards for patch in card.patches]
        assert len(covered) == len(set(covered)) == len(cards) * CARD * CARD
        for card in cards:
            assert all(edge % PATCH == 0 and 0 <= edge <= GRID * PATCH for edge in card.box)
            assert {REGIONS[patch_region(patch)] for patch in card.patches} == {card.region}
        for values in zip(*((card.digit, card.colour, card.region) for card in cards), strict=True):
            assert len(set(values)) == len(cards)


def test_boxes_contain_card_and_digit_pixels() -> None:
    for scene in load_scenes("test", count=20):
        pixels = np.asarray(scene.image).astype(float)
        for card in scene.cards:
            x0, y0, x1, y1 = card.box
            inside = pixels[y0:y1, x0:x1]
            from_colour = np.abs(inside - np.array(COLOURS[card.colour])).max(-1)
            assert (from_colour < 40).mean() > 0.2, scene.id
            # Ink is close to black or close to white: grey, and far from the card's colour.
            grey = np.ptp(inside, axis=-1) < 70
            assert (grey & (from_colour > 80)).mean() > 0.02, scene.id


def test_every_number_of_cards_occurs() -> None:
    assert {len(lay_out(np.random.default_rng(seed))) for seed in range(100)} == {3, 4, 5, 6}


@pytest.mark.parametrize("bad", [0, -1, True, 2.0])
def test_load_scenes_refuses_a_bad_count(bad: object) -> None:
    with pytest.raises(ValueError, match="count must be a positive int"):
        load_scenes("test", count=bad)  # type: ignore[arg-type]


def test_load_scenes_refuses_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        load_scenes("dev")


def test_make_scene_refuses_negative_numbers() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        make_scene("test", 0, -1)


def test_lay_out_refuses_bad_bounds() -> None:
    with pytest.raises(ValueError, match="fewest"):
        lay_out(np.random.default_rng(0), 4, 3)


def test_import_is_light_and_a_missing_scikit_learn_is_explained() -> None:
    code = """
import sys
import tokenprune.bundled as bundled
heavy = {"transformers", "sklearn"} & set(sys.modules)
assert not heavy, heavy
sys.modules["sklearn"] = None
sys.modules["sklearn.datasets"] = None
try:
    bundled.load_scenes(count=1)
except ImportError as error:
    assert 'pip install "tokenprune-lmm[eval]"' in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
