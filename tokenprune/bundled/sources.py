"""The real images behind the scenes, and how they are split.

Digits: scikit-learn's ``load_digits``, 1797 handwritten 8 x 8 digits (a copy of the test set of the UCI "Optical
Recognition of Handwritten Digits" data). Photographs: scikit-learn's ``load_sample_images``, two photographs of 427 x
640 pixels. Each digit image and each strip of a photograph belongs to one split only, so no test digit and no test
background was seen in training.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

SPLITS: Final[tuple[str, ...]] = ("train", "validation", "test")

_DIGIT_RANGES: Final = {"test": (0, 400), "validation": (400, 600), "train": (600, 1797)}
_STRIPS: Final = {"test": (0, 160), "validation": (160, 304), "train": (304, 640)}


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is "train", "validation" or "test"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def digit_indices(split: str) -> range:
    """Indices into ``load_digits`` of the digit images of a split."""
    check_split(split)
    return range(*_DIGIT_RANGES[split])


def strip_columns(split: str) -> range:
    """Pixel columns of both photographs that backgrounds of a split are cut from."""
    check_split(split)
    return range(*_STRIPS[split])


@lru_cache(maxsize=1)
def _load() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]:
    try:
        from sklearn.datasets import load_digits, load_sample_images  # type: ignore[import-untyped]
    except ImportError as error:
        message = 'the scenes are made from images that ship with scikit-learn: pip install "tokenprune-lmm[eval]"'
        raise ImportError(message) from error
    digits = load_digits()
    ink = np.asarray(digits.images, dtype=np.float32) / 16.0
    photos = np.stack([np.asarray(photo, dtype=np.uint8) for photo in load_sample_images().images])
    return ink, np.asarray(digits.target, dtype=np.int64), photos


@lru_cache(maxsize=64)
def digit_images(split: str, digit: int) -> NDArray[np.float32]:
    """All images of one digit in a split: (count, 8, 8), ink from 0 to 1."""
    ink, labels, _ = _load()
    chosen = digit_indices(split)
    part = slice(chosen.start, chosen.stop)
    return ink[part][labels[part] == digit]


def photo_strip(split: str, photo: int) -> NDArray[np.uint8]:
    """The strip of photograph 0 or 1 that belongs to a split: (427, width, 3), RGB from 0 to 255."""
    columns = strip_columns(split)
    return _load()[2][photo, :, columns.start : columns.stop]
