"""Where the cards of a scene stand: the layout, without any pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tokenprune.bundled.vocabulary import COLOURS, DIGITS, REGIONS

PATCH: Final = 8
"""Side of a patch of the vision tower, in pixels."""
GRID: Final = 16
"""Patches per side of the image, so 256 visual tokens."""
SIDE: Final = PATCH * GRID
"""Side of the square image, in pixels."""
CARD: Final = 3
"""Side of a card, in patches; cards are aligned to the grid, because digits cut at random are much harder to read."""

# First patch and number of patches of the three bands that make the 3 x 3 regions.
_BANDS: Final = ((0, 5), (5, 6), (11, 5))


@dataclass(frozen=True, slots=True)
class Card:
    """One coloured card with a handwritten digit.

    Attributes:
        digit: the digit on the card, 0 to 9.
        colour: the card's colour word, a key of ``vocabulary.COLOURS``.
        box: (x0, y0, x1, y1) in pixels of the 128 x 128 image; x1 and y1 are exclusive.
        region: the word for the part of the image that holds the card, one of ``vocabulary.REGIONS``.
    """

    digit: int
    colour: str
    box: tuple[int, int, int, int]
    region: str

    @property
    def patches(self) -> tuple[int, ...]:
        """Row-major indices (0 to 255) of the patches, hence visual tokens, that the card covers."""
        x0, y0, x1, y1 = (edge // PATCH for edge in self.box)
        return tuple(row * GRID + column for row in range(y0, y1) for column in range(x0, x1))


def lay_out(rng: np.random.Generator, fewest: int = 3, most: int = 6) -> tuple[Card, ...]:
    """Draw the cards of one scene; digits, colours and regions are each distinct within it.

    The digits come from a random range of digits first, so that the largest and the smallest digit of a scene cannot be
    guessed well without looking ("nine" would otherwise be right almost every second time).

    Args:
        rng: source of randomness; equal states give equal layouts.
        fewest: least number of cards, at least 1.
        most: largest number of cards, at most 6.

    Returns:
        The cards in a random order.

    Raises:
        ValueError: the bounds are not 1 <= fewest <= most <= 6.
    """
    if not 1 <= fewest <= most <= 6:
        raise ValueError(f"lay_out: need 1 <= fewest <= most <= 6, got fewest={fewest}, most={most}")
    count = int(rng.integers(fewest, most + 1))
    low, high = 0, 9
    while True:
        low, high = int(rng.integers(0, 5)), int(rng.integers(5, 10))
        if high - low + 1 >= count:
            break
    digits = low + rng.permutation(high - low + 1)[:count]
    colours = rng.permutation(len(COLOURS))[:count]
    regions = rng.permutation(len(REGIONS))[:count]
    names = tuple(COLOURS)
    cards = []
    for digit, colour, region in zip(digits, colours, regions, strict=True):
        row, column = divmod(int(region), 3)
        top, left = (start + int(rng.integers(0, size - CARD + 1)) for start, size in (_BANDS[row], _BANDS[column]))
        box = (left * PATCH, top * PATCH, (left + CARD) * PATCH, (top + CARD) * PATCH)
        cards.append(Card(int(digit), names[int(colour)], box, REGIONS[int(region)]))
    return tuple(cards)


def patch_region(patch: int) -> int:
    """Index into ``vocabulary.REGIONS`` of the region that holds a patch.

    Args:
        patch: row-major patch index, 0 to 255.

    >>> REGIONS[patch_region(0)], REGIONS[patch_region(255)]
    ('northwest', 'southeast')
    """
    row, column = divmod(patch, GRID)
    band = [0] * 5 + [1] * 6 + [2] * 5
    return band[row] * 3 + band[column]


def digit_word(digit: int) -> str:
    """The word for a digit, 0 to 9."""
    return DIGITS[digit]
