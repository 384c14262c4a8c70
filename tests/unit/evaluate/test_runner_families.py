"""The runner of comparisons on a tiny model of every family: what the model itself and `prune` answer."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenprune import parse, prune
from tokenprune.evaluate.answers import answer, ask_batches
from tokenprune.evaluate.batches import processed
from tokenprune.evaluate.kept_tokens import draw_kept
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample
from tokenprune.models import adapter_for
from tokenprune.testing.tiny.families import tiny_families, tiny_model
from tokenprune.testing.tiny.models import MakeInputs


class Processor:
    """Stands in for a family's processor: a picture's first pixel tells which of the tiny pictures it is."""

    def __init__(self, make_inputs: MakeInputs) -> None:
        self.make_inputs = make_inputs
        self.tokenizer = SimpleNamespace(chat_template=None)

    def __call__(
        self, images: list[Image.Image], text: list[str], *, padding: bool, padding_side: str, return_tensors: str
    ) -> dict[str, Tensor]:
        assert padding
        assert return_tensors == "pt"
        numbers = iter([image.getpixel((0, 0))[0] for image in images])  # type: ignore[index]
        prompts = [re.sub("<image>", lambda _: f"<{next(numbers)}>", prompt) for prompt in text]
        return self.make_inputs(prompts, padding_side=padding_side)

    def batch_decode(self, ids: Tensor, *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


def loaded(family: str) -> LoadedModel:
    model, make_inputs = tiny_model(family, layers=4)
    return LoadedModel(
        name=family,
        model=model,
        processor=Processor(make_inputs),
        digest=family,
        device="cpu",
        dtype="float32",
        attention="sdpa",
    )


def samples() -> list[Sample]:
    """Pictures of several sizes; number 1 occurs three times, once beside another one."""
    shown = [(0,), (1,), (2,), (1,), (3, 1), (0,), (5,)]
    questions = ["what is it", "so", "how many things are there", "is it red", "which one", "and that", "then"]
    return [
        Sample(
            id=str(i),
            images=tuple(Image.new("RGB", (4, 4), (number, 0, 0)) for number in numbers),
            question=question,
            answers=("no",),
        )
        for i, (numbers, question) in enumerate(zip(shown, questions, strict=True))
    ]


@pytest.mark.parametrize("family", tiny_families())
def test_the_runner_does_what_the_model_and_prune_do(family: str) -> None:
    model, data = loaded(family), samples()
    # Random tokens depend on the picture alone, so they tell pictures that were mixed up.
    strategies = [None, parse("random(keep=5)"), parse("greedy_repmax(keep=0.5)")]
    if "decoder" in adapter_for(model.model).sites:
        strategies.append(parse("random(keep=6) >> fastv(keep=3, layer=2)"))
    runner = Runner(model, data, batch_size=3, max_new_tokens=3)
    runner.check([strategy for strategy in strategies if strategy is not None])
    runner.prepare()
    for batch in runner.batches:
        inputs = processed(model.processor, batch.samples)
        for strategy in strategies:
            records, _ = runner.run_batch(batch, strategy)
            settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
            if strategy is None:
                told = model.model.generate(**inputs, **settings)
            else:
                with prune(model.model, strategy) as record:
                    told = model.model.generate(**inputs, **settings)
                found = [image["indices"] for entry in records for image in entry["images"]]
                assert found == [image.indices.tolist() for image in record.images]
            new = told[:, inputs["input_ids"].shape[1] :]
            assert [entry["answer"] for entry in records] == model.processor.batch_decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm"])
def test_a_cache_that_is_too_small_changes_nothing(family: str) -> None:
    model, data = loaded(family), samples()
    answers = []
    for limit in (0, 2**30):
        runner = Runner(model, data, batch_size=3, max_new_tokens=2, cache_bytes=limit)
        runner.check([])
        runner.prepare()
        answers.append([runner.run_batch(batch, parse("random(keep=5)"))[0] for batch in runner.batches])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "internvl"])
def test_answers_of_a_data_set(family: str) -> None:
    model, data = loaded(family), samples()
    for batch in ask_batches(model, data, batch_size=4):
        inputs = processed(model.processor, batch.samples)
        told = model.model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        found = [entry.text for entry in answer(model, batch, max_new_tokens=3)]
        assert found == model.processor.batch_decode(told, skip_special_tokens=True)


def test_tokens_of_several_tiles_are_not_drawn_as_a_raster() -> None:
    runner = Runner(loaded("internvl"), samples(), batch_size=3)
    with pytest.raises(ValueError, match="no raster that could be drawn"):
        draw_kept(runner, samples()[1], {"tokens_in": 48, "indices": [0]}, merged=False)


def test_a_processor_that_makes_two_images_of_a_picture_is_refused() -> None:
    model = loaded("qwen2_5_vl")
    make_inputs = model.processor.make_inputs
    model.processor.make_inputs = lambda prompts, **options: make_inputs(
        [re.sub(r"(<\d>)", r"\1 \1", prompt) for prompt in prompts], **options
    )
    with pytest.raises(ValueError, match="1 pictures became 2 images"), torch.no_grad():
        Runner(model, samples(), batch_size=3).check([])
