import subprocess
import sys

import pytest
import torch

from tests.unit.analysis.clouds import bundled_model, scenes
from tests.unit.evaluate.tiny import tiny_image, tiny_loaded
from tokenprune.analysis import bundled_images, stream_images
from tokenprune.evaluate.samples import Sample


def test_importing_is_light() -> None:
    heavy = "{'transformers', 'matplotlib', 'sklearn', 'pandas', 'pyarrow', 'statsmodels'}"
    code = f"import sys, tokenprune.analysis; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scenes_carry_cards_and_other_questions_about_the_same_picture() -> None:
    first = scenes()[0]
    assert first.tokens.grid == (16, 16)
    assert first.tokens.cls_attention is not None
    keys = {image.tokens.key for image in scenes()}
    assert len(keys - {None}) == len(scenes())  # random strategies draw anew for every image
    assert all(len(rows) == 9 for rows in first.objects)
    assert int(first.on_object.sum()) == 9 * len(first.objects)
    assert len(first.others) >= 8
    for other in first.others:
        assert torch.equal(other.visual, first.tokens.visual)
        assert other.text is not None
        assert first.tokens.text is not None
        assert other.text.shape != first.tokens.text.shape or not torch.equal(other.text, first.tokens.text)


def test_a_sample_with_two_images_gives_two_images_with_one_text() -> None:
    sample = Sample(id="q", images=(tiny_image(0), tiny_image(1)), question="w9", answers=("w7",))
    one, two = stream_images(tiny_loaded(), [sample], other_questions={"q": ["w10 w11"]})
    assert (one.id, two.id) == ("q#0", "q#1")
    assert one.tokens.text is not None
    assert two.tokens.text is not None
    assert torch.equal(one.tokens.text, two.tokens.text)
    assert not torch.equal(one.tokens.visual, two.tokens.visual)
    assert torch.equal(two.others[0].visual, two.tokens.visual)


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="samples is empty"):
        list(stream_images(bundled_model(), []))
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        bundled_images(bundled_model(), 0)
