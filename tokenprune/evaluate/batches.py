"""Samples as batches for the model: chat prompts, token ids padded on the left, picture names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenprune.evaluate.samples import ImageSource, Sample, image_digest, open_image


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        samples: the samples, one per row.
        ids: int64 (b, l), padded on the left, one placeholder per visual token.
        mask: int64 (b, l), 0 on padding.
        pictures: digest of every image, in placeholder order.
        rest: what else the processor made but pixels: sizes, grids, token types.
    """

    samples: tuple[Sample, ...]
    ids: Tensor
    mask: Tensor
    pictures: tuple[str, ...]
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All arguments of the model but pixels."""
        return {**self.rest, "input_ids": self.ids, "attention_mask": self.mask}

    @property
    def encodings(self) -> tuple[str, ...]:
        """Of every image a name for what is made of it: some models encode one otherwise beside others."""
        counts = [len(sample.images) for sample in self.samples for _ in sample.images]
        return tuple(f"{name} of {count}" for name, count in zip(self.pictures, counts, strict=True))


def chat_prompt(processor: Any, question: str, images: int) -> str:  # noqa: ANN401
    """The prompt of one user turn: the images, then the question, through the processor's chat template.

    Processors without one get LLaVA-1.5's: USER: <image> (new line) question ASSISTANT:

    Args:
        processor: the model's processor.
        question: the text.
        images: number of images before it.

    Raises:
        ValueError: when the question holds the text at which this processor puts an image.
    """
    placeholder = getattr(processor, "image_token", None)
    if isinstance(placeholder, str) and placeholder and placeholder in question:
        raise ValueError(
            f"the question {question!r} holds {placeholder!r}, at which the processor puts an image; images come "
            "before the question by themselves, so take it out"
        )
    if getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    return f"USER: {getattr(processor, 'image_token', '<image>')}\n" * images + f"{question} ASSISTANT:"


def processed(processor: Any, samples: Sequence[Sample]) -> dict[str, Any]:  # noqa: ANN401
    """What the processor makes of some samples: ids, mask and pixels, on the CPU, padded on the left."""
    texts = [chat_prompt(processor, sample.question, len(sample.images)) for sample in samples]
    images = [open_image(image) for sample in samples for image in sample.images]
    return dict(processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt"))


class PictureNames:
    """Digests of pictures, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Path | int, str] = {}

    def of(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """The digest of every image of the samples, in order."""
        return tuple(self._name(image) for sample in samples for image in sample.images)

    def _name(self, image: ImageSource) -> str:
        key = image if isinstance(image, Path) else id(image)
        if key not in self._known:
            self._known[key] = image_digest(image)
        return self._known[key]


def make_batches(
    processor: Any,  # noqa: ANN401
    samples: Sequence[Sample],
    size: int,
    names: PictureNames,
) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
    """Batches in the order of the samples, each with what the processor made of it (pixels included).

    Args:
        processor: the model's processor.
        samples: the data set.
        size: samples per batch, at least 1; the last batch may be smaller.
        names: digests of the pictures.

    Raises:
        ValueError: when size is not positive.
    """
    if size < 1:
        raise ValueError(f"make_batches: size must be 1 or more, got {size}")
    for start in range(0, len(samples), size):
        part = tuple(samples[start : start + size])
        inputs = processed(processor, part)
        batch = Batch(
            samples=part,
            ids=inputs["input_ids"],
            mask=inputs["attention_mask"],
            pictures=names.of(part),
            rest={
                name: value
                for name, value in inputs.items()
                if isinstance(value, Tensor)
                and not name.startswith("pixel")
                and name not in ("input_ids", "attention_mask")
            },
        )
        yield batch, inputs


def resampling_units(samples: Sequence[Sample], names: PictureNames) -> list[str]:
    """What the bootstrap draws: samples that show the same images belong together."""
    return [" ".join(names.of([sample])) for sample in samples]
