"""Letterboxing: pictures padded to a square, and which visual tokens see nothing but padding."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

COLOUR = (122, 116, 104)
"""CLIP's mean colour, with which LLaVA-1.5 pads."""


def letterboxed(picture: "Image.Image") -> "Image.Image":
    """The picture in the middle of a square of CLIP's mean colour, as LLaVA-1.5's own preprocessing makes it.

    Examples:
        >>> from PIL import Image
        >>> letterboxed(Image.new("RGB", (8, 4))).size
        (8, 8)
    """
    from PIL import Image

    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), COLOUR)
    square.paste(picture.convert("RGB"), ((side - width) // 2, (side - height) // 2))
    return square


def padding_tokens(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, ...]:
    """Tokens of a letterboxed picture that see nothing of it.

    Args:
        size: width and height of the picture before letterboxing, in pixels.
        grid: rows and columns of the raster of tokens over the square.

    Returns:
        Their numbers, row by row; empty for a square picture.

    Raises:
        ValueError: when a number is not positive.

    Examples:
        >>> padding_tokens((8, 4), (4, 2))
        (0, 1, 6, 7)
    """
    (width, height), (rows, columns) = size, grid
    if min(width, height, rows, columns) < 1:
        raise ValueError(f"padding_tokens: size and grid must be positive, got {size} and {grid}")
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    # Token (i, j) sees the pixels from i * side / rows up to (i + 1) * side / rows; whole numbers keep it exact.
    inside_rows = [(i + 1) * side > top * rows and i * side < (top + height) * rows for i in range(rows)]
    inside_columns = [(j + 1) * side > left * columns and j * side < (left + width) * columns for j in range(columns)]
    return tuple(
        i * columns + j for i in range(rows) for j in range(columns) if not (inside_rows[i] and inside_columns[j])
    )
