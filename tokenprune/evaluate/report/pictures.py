"""Kept tokens drawn over the picture: what was dropped fades."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
_OUTLINE = np.array([20, 20, 20], dtype=np.float64)
_DOT = np.array([255, 255, 255], dtype=np.float64)


def overlay(
    picture: Pixels,
    indices: Sequence[int],
    grid: tuple[int, int],
    *,
    merged: bool = False,
    side: int = 512,
    fade: float = 0.8,
) -> Pixels:
    """The picture with every dropped token's cell faded to a pale grey, and an outline around what is kept.

    Args:
        picture: uint8 (height, width, 3), as the model saw it, so that its raster of tokens covers it exactly.
        indices: kept tokens, row by row numbers in `grid`.
        grid: rows and columns of the raster of tokens.
        merged: True for methods that average tokens instead of dropping them: nothing fades, and a dot marks the place
            that each new token takes.
        side: length of the result's longer side in pixels.
        fade: how far dropped cells go towards white, 0 to 1.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: when an index is outside of the raster.
    """
    rows, columns = grid
    kept = np.zeros(rows * columns, dtype=bool)
    chosen = np.asarray(indices, dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= kept.size):
        raise ValueError(
            f"overlay: indices must lie in [0, {kept.size}) for a raster of {rows} x {columns}, got {chosen.max()}"
        )
    kept[chosen] = True
    canvas = _resized(picture, side).astype(np.float64)
    height, width = canvas.shape[:2]
    row_of = np.arange(height) * rows // height
    column_of = np.arange(width) * columns // width
    if merged:
        _dots(canvas, chosen, grid)
        return canvas.astype(np.uint8)
    shown = kept.reshape(rows, columns)[row_of[:, None], column_of[None, :]]
    grey = canvas.mean(axis=2, keepdims=True)
    canvas = np.where(shown[..., None], canvas, (1 - fade) * (0.3 * canvas + 0.7 * grey) + fade * 255)
    canvas[_border(shown, max(1, side // 300))] = _OUTLINE
    return canvas.astype(np.uint8)


def seen_picture(processor: Any, pixel_values: npt.NDArray[np.float32]) -> Pixels:  # noqa: ANN401
    """Undo the image processor's normalisation: the picture after resizing and cropping, as the model saw it.

    Args:
        processor: the model's processor; its image processor's `image_mean` and `image_std` are used.
        pixel_values: float (3, height, width), one picture.

    Returns:
        uint8 (height, width, 3).
    """
    settings = processor.image_processor
    values = pixel_values.transpose(1, 2, 0).astype(np.float64)
    if getattr(settings, "do_normalize", True):
        values = values * np.asarray(settings.image_std) + np.asarray(settings.image_mean)
    scaled = values * 255 if getattr(settings, "do_rescale", True) else values
    return np.asarray(scaled.round().clip(0, 255), dtype=np.uint8)


def _resized(picture: Pixels, side: int) -> Pixels:
    from PIL import Image

    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(
        Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    )


def _border(shown: npt.NDArray[np.bool_], thickness: int) -> npt.NDArray[np.bool_]:
    """Pixels of the kept area that touch the dropped area."""
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(shown, structure=np.ones((3, 3), dtype=bool), iterations=thickness, border_value=1)
    return np.asarray(shown & ~inner)


def _dots(canvas: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64], grid: tuple[int, int]) -> None:
    rows, columns = grid
    height, width = canvas.shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = 0.28 * min(height / rows, width / columns)
    for index in chosen.tolist():
        centre = ((index // columns + 0.5) * height / rows, (index % columns + 0.5) * width / columns)
        distance = np.hypot(y + 0.5 - centre[0], x + 0.5 - centre[1])
        canvas[distance <= 1.35 * radius] = _OUTLINE
        canvas[distance <= radius] = _DOT
