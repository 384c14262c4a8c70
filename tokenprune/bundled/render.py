"""Pixels: a photograph's crop with cards drawn on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenprune.bundled.cards import CARD, PATCH, SIDE, Card
from tokenprune.bundled.sources import digit_images, photo_strip
from tokenprune.bundled.vocabulary import COLOURS

_PIXELS: Final = CARD * PATCH
# How far a digit is turned, scaled, sheared and shifted. Training digits are distorted more: there are only about 1200.
_DISTORTION: Final = {"train": 1.0, "validation": 0.3, "test": 0.3}


def _background(split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    strip = photo_strip(split, int(rng.integers(2)))
    side = int(rng.integers(96, 141))
    top = int(rng.integers(0, strip.shape[0] - side + 1))
    left = int(rng.integers(0, strip.shape[1] - side + 1))
    crop = Image.fromarray(strip[top : top + side, left : left + side])
    pixels = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    pixels = pixels[:, :, rng.permutation(3)]
    contrast, brightness = rng.uniform(0.6, 1.1), rng.uniform(-20.0, 20.0)
    return np.asarray((pixels - 128.0) * np.float32(contrast) + np.float32(128.0 + brightness), dtype=np.float32)


def _ink(digit: int, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    images = digit_images(split, digit)
    image = Image.fromarray(np.ascontiguousarray(images[int(rng.integers(len(images)))]))
    amount = _DISTORTION[split]
    angle, shear = rng.uniform(-0.26, 0.26) * amount, rng.uniform(-0.2, 0.2) * amount
    scale = 1.08 + rng.uniform(-0.16, 0.16, size=2) * amount
    shift = rng.uniform(-0.7, 0.7, size=2) * amount
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[scale[0], shear], [0.0, scale[1]]])
    # Where the corners of the card lie in the 8 x 8 image, in the order that Pillow wants: NW, SW, SE, NE.
    corners = np.array([[-4.0, -4.0], [-4.0, 4.0], [4.0, 4.0], [4.0, -4.0]]) @ turn.T + 4.0 + shift
    corners += rng.uniform(-0.6, 0.6, size=(4, 2)) * amount
    quad = corners.reshape(-1).tolist()
    drawn = image.transform((_PIXELS, _PIXELS), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    thickness = np.float32(np.exp(rng.uniform(-0.4, 0.4) * amount))
    cover = np.clip(np.asarray(drawn, dtype=np.float32), 0.0, 1.0) ** thickness
    return np.clip(cover * np.float32(rng.uniform(1.0, 1.3)), 0.0, 1.0)


def render(cards: Sequence[Card], split: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a scene.

    Args:
        cards: what to draw and where.
        split: "train", "validation" or "test": which digit images and which photo strips are used.
        rng: source of randomness; equal states give equal pixels.

    Returns:
        RGB pixels from 0 to 255, shape (128, 128, 3).
    """
    canvas = _background(split, rng)
    for card in cards:
        x0, y0, x1, y1 = card.box
        colour = (np.array(COLOURS[card.colour]) + rng.uniform(-18.0, 18.0, size=3)).astype(np.float32)
        light = float(colour @ np.array([0.3, 0.59, 0.11], dtype=np.float32)) > 140.0
        ink = np.float32(rng.uniform(0.0, 45.0) if light else rng.uniform(225.0, 255.0))
        cover = _ink(card.digit, split, rng)[:, :, None]
        canvas[y0:y1, x0:x1] = colour * (1.0 - cover) + ink * cover
    canvas += 4.0 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas, 0.0, 255.0).astype(np.uint8)
