"""A picture of what one call kept, for notebooks and pages."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenprune.evaluate.report.pictures import Pixels, overlay, seen_picture

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.models.record import ImageRecord


def draw_record(image: "ImageRecord", pixels: "Tensor", processor: Any, *, side: int = 320) -> Pixels:  # noqa: ANN401
    """The picture as the model saw it, with everything that was dropped faded.

    Args:
        image: its entry in the record of `prune`.
        pixels: float (3, height, width), its `pixel_values`.
        processor: the model's processor.
        side: length of the result's longer side in pixels.

    Returns:
        uint8 (h, w, 3); for methods that make new tokens nothing fades, and dots mark the places that they take.

    Raises:
        ValueError: when the tokens of the image are no raster.
    """
    height, width = pixels.shape[-2:]
    rows = round((image.tokens_in * height / width) ** 0.5)
    if rows < 1 or image.tokens_in % rows:
        raise ValueError(f"draw_record: the image's {image.tokens_in} visual tokens are no raster that could be drawn")
    seen = seen_picture(processor, np.asarray(pixels.float().cpu()))
    grid = (rows, image.tokens_in // rows)
    return overlay(seen, image.indices.tolist(), grid, merged=image.merged, side=side)


def as_html(picture: Pixels, description: str) -> str:
    """A picture as an `<img>` element that carries its own data (JPEG).

    Examples:
        >>> as_html(np.zeros((8, 8, 3), dtype=np.uint8), "nothing")[:57]
        '<img alt="nothing" width="8" src="data:image/jpeg;base64,'
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" width="{picture.shape[1]}" src="data:image/jpeg;base64,{data}">'
