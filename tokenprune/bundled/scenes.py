"""Scenes: an image, its cards as ground truth, and questions with answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from tokenprune.bundled.cards import Card, lay_out
from tokenprune.bundled.questions import KINDS, Question, ask
from tokenprune.bundled.render import render
from tokenprune.bundled.sources import SPLITS, check_split

__all__ = ["Card", "Question", "Scene", "make_scene"]

# What keeps the random streams of scenes apart from any other use of the same seed.
_STREAM: Final = 7


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with everything that is known about it.

    Attributes:
        id: split, seed and index, for instance "test-0-17".
        image: RGB, 128 x 128 pixels.
        cards: the cards in the image, in a random order.
        questions: one question of each kind of ``questions.KINDS``.
    """

    id: str
    image: Image.Image
    cards: tuple[Card, ...]
    questions: tuple[Question, ...]


def make_scene(split: str, seed: int, index: int) -> Scene:
    """Make one scene; the same arguments always give the same scene.

    Args:
        split: "train", "validation" or "test".
        seed: which series of scenes, at least 0.
        index: which scene of the series, at least 0.

    Returns:
        The scene, with 3 to 6 cards and one question of each kind.

    Raises:
        ValueError: the split is unknown, or seed or index is negative.
        ImportError: scikit-learn is not installed.
    """
    check_split(split)
    if seed < 0 or index < 0:
        raise ValueError(f"make_scene: seed and index must not be negative, got seed={seed}, index={index}")
    rng = np.random.default_rng([_STREAM, SPLITS.index(split), seed, index])
    cards = lay_out(rng)
    questions = tuple(ask(kind, cards, rng) for kind in KINDS)
    return Scene(f"{split}-{seed}-{index}", Image.fromarray(render(cards, split, rng)), cards, questions)
