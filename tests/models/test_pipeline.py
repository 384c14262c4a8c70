"""`transformers.pipeline` inside a context prunes."""

from typing import Any

import pytest
from transformers import pipeline

from tests.models.decoder_oracle import Attended
from tests.models.oracle import ByContent
from tokenprune import PruningStrategy, prune
from tokenprune.bundled import load_model, load_processor, load_scenes, prompt

QUESTION = "how many cards are there ?"


@pytest.mark.parametrize("strategy", [ByContent(), Attended(layer=2)], ids=repr)
def test_a_pipeline_prunes(strategy: PruningStrategy) -> None:
    model: Any = load_model()
    processor = load_processor()
    images = [scene.image for scene in load_scenes(count=2)]
    ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
    options: dict[str, Any] = {"max_new_tokens": 3, "return_full_text": False}
    chat = [
        {"role": "user", "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": QUESTION}]},
    ]
    dense = ask(images=images[0], text=prompt(QUESTION), **options)
    with prune(model, strategy) as record:
        (first,) = ask(images=images[0], text=prompt(QUESTION), **options)
        again, _ = ask(images=images, text=[prompt(QUESTION)] * 2, batch_size=2, **options)
        ask(text=chat, **options)
    assert [len(call.images) for call in record.calls] == [1, 2, 1]
    assert all(0 < image.tokens_kept < image.tokens_in for image in record.images)
    inputs = processor(images=images[0], text=prompt(QUESTION), return_tensors="pt")
    with prune(model, strategy) as alone:
        ids = model.generate(**inputs, max_new_tokens=3)
    said = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert first["generated_text"].split() == again["generated_text"].split() == said.split()
    kept = [image.indices.tolist() for image in record.images]
    assert kept[0] == kept[1] == alone.images[0].indices.tolist()
    assert ask(images=images[0], text=prompt(QUESTION), **options) == dense
