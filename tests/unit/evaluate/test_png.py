"""Figures as files: the picture that savefig makes, without its alpha channel."""

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tokenprune.evaluate.figures import to_png


def test_the_same_picture_as_savefig() -> None:
    figure = Figure(figsize=(2, 1), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.arange(12).reshape(3, 4))
    axes.set_title("title")
    data = to_png(figure)
    reference = BytesIO()
    figure.savefig(reference, format="png", facecolor="white")
    picture = Image.open(BytesIO(data))
    assert picture.mode == "RGB"
    assert picture.info["dpi"][0] == 90 or abs(picture.info["dpi"][0] - 90) < 0.1
    expected = Image.open(reference).convert("RGB")
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert "Software" not in picture.info
    assert to_png(figure) == data
