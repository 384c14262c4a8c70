import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.evaluate.tiny import tiny_image, tiny_processor
from tokenprune.evaluate.figures import accuracy_figure
from tokenprune.evaluate.gallery import Answer, Column, gallery
from tokenprune.evaluate.picture import as_html, draw_record
from tokenprune.evaluate.report.pictures import overlay, seen_picture
from tokenprune.models import ImageRecord

PICTURE = np.full((40, 40, 3), 90, dtype=np.uint8)


def test_kept_cells_keep_their_colour_and_dropped_ones_fade() -> None:
    drawn = overlay(PICTURE, [5], (4, 4), side=80)
    assert drawn.shape == (80, 80, 3)
    assert drawn[30, 30].tolist() == [90, 90, 90]  # the middle of cell 5
    assert drawn[10, 10].min() > 200
    assert drawn[20, 20].max() < 40  # its outline


def test_everything_kept_is_the_picture() -> None:
    assert (overlay(PICTURE, list(range(16)), (4, 4), side=40) == PICTURE).all()


def test_merging_methods_fade_nothing() -> None:
    drawn = overlay(PICTURE, [5], (4, 4), merged=True, side=80)
    assert drawn[10, 10].tolist() == [90, 90, 90]
    assert drawn[30, 30].tolist() == [255, 255, 255]


def test_pictures_that_are_not_square_and_rasters_that_do_not_divide() -> None:
    assert overlay(np.zeros((30, 50, 3), dtype=np.uint8), [0, 20], (3, 7), side=101).shape == (61, 101, 3)


def test_index_outside_of_the_raster() -> None:
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 16\) .* got 16"):
        overlay(PICTURE, [16], (4, 4))


def test_the_normalisation_is_undone() -> None:
    processor = tiny_processor()
    image = tiny_image(3)
    pixels = processor.image_processor(images=[image], return_tensors="np")["pixel_values"][0]
    assert np.abs(seen_picture(processor, pixels).astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_gallery_wants_an_answer_per_row() -> None:
    answer = Answer(text="x", correct=True, indices=(0,))
    column = Column(picture=PICTURE, grid=(4, 4), question="q", reference="r", answers=(answer,))
    with pytest.raises(ValueError, match="one or more columns with 2 answers"):
        gallery([column], ["a", "b"])
    with pytest.raises(ValueError, match="got 0 columns"):
        gallery([], [])


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no pruned row"):
        accuracy_figure([])


def image_record(tokens_in: int, indices: list[int]) -> ImageRecord:
    return ImageRecord(
        call=0,
        prompt=0,
        image=0,
        tokens_in=tokens_in,
        tokens_kept=len(indices),
        indices=torch.tensor(indices),
        requested=len(indices),
        merged=False,
        stages=(),
        site="projector",
        positions="compact",
        select_seconds=0.0,
    )


def test_a_record_is_drawn_over_the_picture_that_the_model_saw() -> None:
    processor, image = tiny_processor(), tiny_image(3)
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    record = image_record(16, [5])
    seen = seen_picture(processor, pixels.numpy())
    assert (draw_record(record, pixels, processor, side=80) == overlay(seen, [5], (4, 4), side=80)).all()
    merged = draw_record(replace(record, merged=True), pixels, processor, side=80)
    assert (merged == overlay(seen, [5], (4, 4), merged=True, side=80)).all()
    with pytest.raises(ValueError, match="the image's 15 visual tokens are no raster"):
        draw_record(image_record(15, [5]), pixels, processor)


def test_a_picture_carries_its_data_in_the_page() -> None:
    html = as_html(PICTURE, 'a "grey" square')
    assert html.startswith('<img alt="a &quot;grey&quot; square" width="40" src="data:image/jpeg;base64,')
    data = base64.b64decode(html.split("base64,")[1].removesuffix('">'))
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - 90).max() <= 2
