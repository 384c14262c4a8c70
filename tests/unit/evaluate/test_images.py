"""What the loader makes of every kind of picture file, against values that are worked out by hand."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from tokenprune.evaluate.samples import Sample, image_digest, open_image, samples_digest

ORIENTATION = 0x0112
# An upright picture with four different corners: red, green / blue, white.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [9, 9, 9]], [[0, 0, 255], [255, 255, 255], [5, 5, 5]]], dtype=np.uint8)
# What a camera stores so that a viewer, after doing what the EXIF standard says for the value, shows CORNERS: the
# standard names the sides of the picture that row 0 and column 0 are.
STORED = {
    1: CORNERS,  # top, left
    2: CORNERS[:, ::-1],  # top, right
    3: CORNERS[::-1, ::-1],  # bottom, right
    4: CORNERS[::-1],  # bottom, left
    5: CORNERS.transpose(1, 0, 2),  # left, top
    6: CORNERS.transpose(1, 0, 2)[::-1],  # right, top
    7: CORNERS.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: CORNERS.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def exif(value: object) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = value
    return tags


def pixels(path: Path) -> np.ndarray[Any, Any]:
    picture = open_image(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_every_orientation_is_applied(value: int, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"stored{suffix}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(STORED[value])).save(file, exif=exif(value), **options)
    assert (pixels(file) == CORNERS).all()
    assert (pixels(file) == np.asarray(load_image(str(file)))).all()
    with Image.open(file) as opened:  # a picture that was opened already
        assert (np.asarray(open_image(opened)) == CORNERS).all()


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(value: object, tmp_path: Path) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "x.png", exif=exif(value))
    assert (pixels(tmp_path / "x.png") == CORNERS).all()


def test_a_jpeg_with_orientation_has_the_sides_of_the_upright_picture(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif(6))
    assert open_image(tmp_path / "x.jpg").size == (20, 40)


RAMP = np.array([[0, 128, 129, 255, 256], [257, 32767, 32896, 65000, 65535]], dtype=np.uint16)
SCALED = np.array([[0, 0, 1, 1, 1], [1, 127, 128, 253, 255]])  # value / 257, rounded


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_16_bit_grey_is_scaled(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"x{suffix}")
    assert (pixels(tmp_path / f"x{suffix}") == SCALED[..., None]).all()


def test_16_bit_grey_in_memory_in_either_byte_order() -> None:
    little = Image.frombytes("I;16", (5, 2), RAMP.astype("<u2").tobytes())
    big = Image.frombytes("I;16B", (5, 2), RAMP.astype(">u2").tobytes())
    for image in (little, big, Image.fromarray(RAMP)):
        assert (np.asarray(open_image(image)) == SCALED[..., None]).all()


def test_big_endian_tiff_and_one_where_zero_is_white(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (5, 2), RAMP.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    assert (pixels(tmp_path / "big.tif") == SCALED[..., None]).all()
    Image.fromarray(RAMP).save(tmp_path / "white.tif", tiffinfo={262: 0})
    assert (pixels(tmp_path / "white.tif") == 255 - SCALED[..., None]).all()


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    # Two values of 12 bits in three bytes: 0xFFF and 0x800.
    head = b"II*\0\x0c\0\0\0" + b"\xff\xf8\x00\0"
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 3)]
    body = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        body += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
        body += value.to_bytes(4, "little")
    (tmp_path / "x.tif").write_bytes(head + body + bytes(4))
    assert pixels(tmp_path / "x.tif")[0, :, 0].tolist() == [255, 128]  # 2048 / 4095 * 255 = 127.53


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP)
    image.save(tmp_path / "x.png", transparency=32767)
    assert pixels(tmp_path / "x.png")[..., 0].tolist() == [[0, 0, 1, 1, 1], [1, 255, 128, 253, 255]]


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_grey_of_which_nothing_says_what_is_white_is_refused(kind: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif.*nothing says which one is white; save it with 8 or 16 bits"):
        open_image(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="nothing says which one is white"):
        open_image(Image.fromarray(RAMP.astype(kind)))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    expected = [[255, 255, 255], [200, 0, 0], [204, 204, 204]]  # 51 / 255 = 0.2 black on 255
    assert pixels(tmp_path / "rgba.png")[0].tolist() == expected
    grey = np.array([[[7, 0], [7, 255], [0, 51]]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0, :, 0].tolist() == [255, 7, 204]
    Image.fromarray(clear[..., :3]).save(tmp_path / "colour.png", transparency=(0, 0, 0))
    assert pixels(tmp_path / "colour.png")[0].tolist() == [[200, 0, 0], [200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\x33"])
def test_palettes_with_and_without_transparency(transparency: int | bytes | None, tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 0])
    image.putdata([0, 1, 2])
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "p.png", **options)
    first, second, third = [10, 20, 30], [200, 0, 0], [0, 0, 0]
    if transparency is not None:
        second = [255, 255, 255]
    if isinstance(transparency, bytes):
        third = [204, 204, 204]
    assert pixels(tmp_path / "p.png")[0].tolist() == [first, second, third]


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "bit.png")[0, :, 0].tolist() == [0, 255]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "red.jpg").astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_several_pictures_in_a_file_the_first_counts(suffix: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 250, 0))
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"x{suffix}", save_all=True, append_images=[second], **options)
    with Image.open(tmp_path / f"x{suffix}") as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert (pixels(tmp_path / f"x{suffix}") == [250, 0, 0]).all()


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="0 pixels wide and 5 high; there is nothing to see"):
        open_image(Image.new("RGB", (0, 5)))
    file = tmp_path / "x.png"
    Image.new("RGB", (30, 10)).save(file)
    for limit in (299, 140):  # Pillow itself would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"x\.png.*scale it down, or raise PIL\.Image\.MAX_IMAGE_PIXELS"):
            open_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert open_image(file).size == (30, 10)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif"])
def test_a_file_cut_anywhere_gives_the_whole_picture_or_an_error_that_names_it(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format=Image.registered_extensions()[suffix])
    data = stream.getvalue()
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    whole.write_bytes(data)
    expected = pixels(whole)
    refused = 0
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = pixels(cut)
        except ValueError as error:
            assert f"cut{suffix}" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert (found == expected).all()
    assert refused > len(data) // 2


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(TypeError, match=r"source must be a pathlib\.Path or a Pillow image, got str"):
        open_image("x.png")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got ndarray"):
        open_image(CORNERS)  # type: ignore[arg-type]


def test_pictures_in_memory_that_look_different_have_different_names() -> None:
    red, green = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    red.putpalette([255, 0, 0])
    green.putpalette([0, 255, 0])
    assert image_digest(red) != image_digest(green)  # equal indices, other palettes
    plain, turned = Image.fromarray(CORNERS[:, :2]), Image.fromarray(CORNERS[:, :2])
    turned.info["exif"] = exif(3).tobytes()
    assert image_digest(plain) != image_digest(turned)
    first, second = (Sample(id="1", images=(image,), question="q", answers=("a",)) for image in (red, green))
    assert samples_digest([first]) != samples_digest([second])
