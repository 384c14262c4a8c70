"""The one loader of pictures: every command sees a picture as its viewer shows it, in 8-bit RGB, or refuses it."""

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "Path | Image.Image"
"""A picture on disk, opened when needed, or one in memory."""

_SIXTEEN_BIT_FORMATS = ("PPM", "PNG")
"""Formats of which Pillow gives 16-bit grey as 32-bit integers, already scaled to 0..65535."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""TIFF tags: bits of a value, and 0 where small values are bright."""


def open_image(source: ImageSource) -> "Image.Image":
    """Open a picture, decode all of it and give it as upright 8-bit RGB.

    - Orientation: the EXIF tag is applied, as in `transformers.image_utils.load_image`.
    - 16-bit grey: scaled to 8 bits (65535 is white; in a TIFF file of 12 bits, 4095). Pillow's own conversion cuts
      everything from 255 on to white.
    - 32-bit integers and floats: refused, because nothing says which value is white. Portable greymaps say it.
    - Transparency (alpha, also of palettes and single colours): laid on white, as image processors of transformers do.
    - Palettes, 1 bit, CMYK, YCbCr: Pillow's conversion. Colour profiles are not applied.
    - Animated files and files of several pages: the first picture.
    - No pixels, or more than `PIL.Image.MAX_IMAGE_PIXELS` (about 89 million): refused.
    - Cut or damaged files: refused.

    Args:
        source: a path or a picture in memory.

    Raises:
        TypeError: when source is neither.
        ValueError: when the picture is refused; the message names the file.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        try:
            return _upright_rgb(source)
        except Exception as error:
            raise ValueError(f"cannot use the picture {source!r}: {error}") from error
    if not isinstance(source, Path):
        raise TypeError(f"open_image: source must be a pathlib.Path or a Pillow image, got {type(source).__name__}")
    try:
        with warnings.catch_warnings():
            # Pillow warns from MAX_IMAGE_PIXELS on and refuses from twice as many on; one limit is easier to say.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Pillow also warns about metadata that it cannot read; the pixels do not depend on those.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(source) as image:
                return _upright_rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {source}: {error}; scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    # Pillow reports broken files through many classes: OSError, SyntaxError (PNG), struct.error, zlib.error.
    except Exception as error:
        raise ValueError(f"cannot read the image {source}: {error}; replace the file or take its line out") from error


def image_digest(source: ImageSource) -> str:
    """Name a picture by SHA-256 of its file, or of its pixels when it is in memory: equal pictures are encoded once.

    Pixels are those of `open_image`: raw ones leave out what decides about colours, for example the palette.
    """
    digest = hashlib.sha256()
    if isinstance(source, Path):
        digest.update(source.read_bytes())
    else:
        picture = open_image(source)
        digest.update(f"{picture.mode} {picture.size} ".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()


def _upright_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    if 0 in image.size:
        raise ValueError(f"it is {image.width} pixels wide and {image.height} high; there is nothing to see")
    white, inverted = _grey_scale(image)  # first: turning loses the file's tags
    upright = ImageOps.exif_transpose(image)
    if white is not None:
        return _eight_bits(upright, white, inverted=inverted)
    if upright.has_transparency_data:
        return _on_white(upright)
    return upright.convert("RGB")


def _grey_scale(image: "Image.Image") -> tuple[int | None, bool]:
    """The value that is white (None: 8-bit, nothing to scale), and whether the scale runs the other way.

    Raises:
        ValueError: when the picture has more than 8 bits and nothing says which value is white.
    """
    tags = getattr(image, "tag_v2", {})  # of TIFF files
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        return 2**bits - 1, tags.get(_PHOTOMETRIC, 1) == 0
    if image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS:
        return 65535, False
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ValueError(f"its grey values are {kind} and nothing says which one is white; save it with 8 or 16 bits")
    return None, False


def _eight_bits(image: "Image.Image", white: int, *, inverted: bool) -> "Image.Image":
    """Grey values 0..white as RGB values 0..255, rounded to the nearest."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)  # (height, width), in the machine's byte order
    grey = ((values.clip(0, white) * 510 + white) // (2 * white)).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    clear = image.info.get("transparency")  # of PNG files: the value that is not there, so that white shows
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
