"""`AnalysedImage`: what the analyses get of one image, and where such images come from."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokenprune.analysis.letterbox import letterboxed, padding_tokens
from tokenprune.core.signals import IMAGE_KEY, Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.tokens import Tokens
from tokenprune.evaluate.samples import Sample, open_image

if TYPE_CHECKING:
    from tokenprune.evaluate.loading import LoadedModel

DEFAULT_COUNT = 60
"""Scenes of the bundled model that an analysis looks at unless told otherwise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AnalysedImage:
    """One image of an analysis. Immutable.

    Attributes:
        id: names the image; results are averaged over images with different ids.
        tokens: its visual tokens with the prompt's text, as strategies get them.
        others: the same image with other questions, for question-swap measures.
        objects: for each annotated object the rows of `tokens` that it covers; empty where there are no annotations.
        padding: rows of `tokens` that see nothing but padding; None when that is not known.

    Raises:
        ValueError: when an object's row does not exist, or one of `others` has another number of visual tokens.
    """

    id: str
    tokens: Tokens
    others: tuple[Tokens, ...] = ()
    objects: tuple[tuple[int, ...], ...] = ()
    padding: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for rows in self.objects:
            if not rows or min(rows) < 0 or max(rows) >= self.tokens.n:
                raise ValueError(
                    f"AnalysedImage {self.id!r}: objects must list rows in 0..{self.tokens.n - 1}, at least one per "
                    f"object, got {rows}; leave objects out that cover no token"
                )
        for other in self.others:
            if other.n != self.tokens.n:
                raise ValueError(
                    f"AnalysedImage {self.id!r}: others must show the same image, but tokens has {self.tokens.n} "
                    f"visual tokens and one of others has {other.n}"
                )

    @property
    def on_object(self) -> Bool[Tensor, " n"]:
        """True for the visual tokens that some object covers."""
        mask = torch.zeros(self.tokens.n, dtype=torch.bool, device=self.tokens.visual.device)
        mask[[row for rows in self.objects for row in rows]] = True
        return mask


def stream_images(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    *,
    other_questions: Mapping[str, Sequence[str]] | None = None,
    objects: Mapping[str, Sequence[Sequence[int]]] | None = None,
    want: Collection[Signal] = (),
    letterbox: bool = False,
) -> Iterator[AnalysedImage]:
    """Visual tokens at the projector output for every image of a data set, one sample in memory at a time.

    Args:
        loaded: the model and its processor, from `tokenprune.evaluate.loading.load`.
        samples: the data set. Image i of a sample with several images gets the id "sample#i".
        other_questions: by sample id, questions to put in place of the sample's own. The pictures are encoded once.
        objects: by sample id, for each annotated object the visual tokens that it covers (samples with one image).
        want: further signals that strategies read, for example `CLS_ATTENTION`. The key by which random
            strategies tell images apart is always there.
        letterbox: pad every picture to a square first, as LLaVA-1.5's own preprocessing does, and tell which tokens see
            nothing but padding.

    Raises:
        ValueError: when there is no sample, or an object does not fit the image.
    """
    if not samples:
        raise ValueError("stream_images: samples is empty; give at least one sample")
    from tokenprune.evaluate.batches import processed
    from tokenprune.evaluate.features import take_images
    from tokenprune.models import adapter_for, build_prompt
    from tokenprune.models.encode.clip import see

    adapter, device, dtype = adapter_for(loaded.model), loaded.model.device, loaded.model.dtype
    adapter.clip = loaded.clip

    def on_device(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }

    for original in samples:
        sample, sizes = original, list[tuple[int, int]]()
        if letterbox:
            pictures = [open_image(image) for image in original.images]
            sizes = [picture.size for picture in pictures]
            sample = replace(original, images=tuple(letterboxed(picture) for picture in pictures))
        with torch.no_grad():
            inputs = on_device(processed(loaded.processor, [sample]))
            count = len(sample.images)
            vision = see(adapter, take_images(inputs, adapter.modality_keys, count, range(count)), {*want, IMAGE_KEY})
            own = build_prompt(adapter, inputs, vision).tokens(want)
            swapped = []
            for question in (other_questions or {}).get(sample.id, ()):
                other = on_device(processed(loaded.processor, [replace(sample, question=question)]))
                swapped.append(build_prompt(adapter, other, vision).tokens(want))
        for place, tokens in enumerate(own):
            yield AnalysedImage(
                id=sample.id if count == 1 else f"{sample.id}#{place}",
                tokens=tokens,
                others=tuple(other[place] for other in swapped),
                objects=tuple(tuple(rows) for rows in (objects or {}).get(sample.id, ())) if count == 1 else (),
                padding=padding_tokens(sizes[place], tokens.grid) if letterbox and tokens.grid else None,
            )


def bundled_images(
    loaded: "LoadedModel",
    count: int = DEFAULT_COUNT,
    *,
    seed: int = 0,
    swap: bool = False,
    want: Collection[Signal] = (),
    letterbox: bool = False,
) -> Iterator[AnalysedImage]:
    """Held-out scenes of the bundled data: one question each (every kind equally often), cards as objects.

    Args:
        loaded: a model that takes the scenes, normally `tokenprune.evaluate.loading.load("bundled")`. The cards are
            told as tokens of a 16 x 16 raster.
        count: number of scenes, at least 1.
        seed: which series of scenes.
        swap: also give each scene with the questions of all other kinds.
        want: see `stream_images`.
        letterbox: cut the scenes to 5:8, wide and tall in turn, and letterbox them again: what is left stands where it
            stood, with padding beside it. Cards that are cut away are no objects any more.

    Raises:
        ValueError: when count is not positive.
        ImportError: when scikit-learn, which the scenes come from, is not installed.
    """
    from tokenprune.bundled import load_scenes

    if isinstance(count, bool) or count < 1:
        raise ValueError(f"bundled_images: count must be 1 or more, got {count}; 60 gives usable intervals")
    samples, questions, objects = [], {}, {}
    for place, scene in enumerate(load_scenes(split="test", count=count, seed=seed)):
        asked = place % len(scene.questions)
        own = scene.questions[asked]
        sample = Sample(id=scene.id, images=(scene.image,), question=own.text, answers=(own.answer,), kind=own.kind)
        objects[scene.id] = [card.patches for card in scene.cards]
        if letterbox:
            cut = scene.image.crop((0, 24, 128, 104) if place % 2 == 0 else (24, 0, 104, 128))
            sample = replace(sample, images=(cut,))
            gone = set(padding_tokens(cut.size, (16, 16)))
            left = [tuple(row for row in rows if row not in gone) for rows in objects[scene.id]]
            objects[scene.id] = [rows for rows in left if rows]
        samples.append(sample)
        if swap:
            questions[scene.id] = [q.text for i, q in enumerate(scene.questions) if i != asked and q.text != own.text]
    return stream_images(loaded, samples, other_questions=questions, objects=objects, want=want, letterbox=letterbox)


def images_of(
    loaded: "LoadedModel",
    samples: Sequence[Sample] | None,
    strategies: Sequence[PruningStrategy] = (),
    *,
    count: int = DEFAULT_COUNT,
    swap: bool = False,
    letterbox: bool = False,
) -> Iterator[AnalysedImage]:
    """Give the images of a data set or of the bundled scenes, with every signal that some strategies read.

    Args:
        loaded: the model and its processor.
        samples: the data set; None for the bundled scenes.
        strategies: are checked against the model, and their signals are read.
        count: number of bundled scenes.
        swap: also give each image with other questions, of a data set with the next different one.
        letterbox: see `stream_images`.

    Raises:
        ValueError: when a strategy does not fit the model, or acts inside the vision tower.
    """
    from tokenprune.models import adapter_for
    from tokenprune.models.plan import tower_part
    from tokenprune.models.prompt.choose import fit_strategy

    adapter = adapter_for(loaded.model)
    adapter.clip = loaded.clip
    for strategy in strategies:
        fit_strategy(strategy, adapter)
        if tower_part(strategy) is not None:
            raise ValueError(
                f"--strategy: {strategy!r} acts inside the vision tower, so that its tokens are not those of the other "
                "strategies; analyses look at one set of tokens, leave it out"
            )
    want = {signal for strategy in strategies for signal in strategy.needs}
    if samples is None:
        return bundled_images(loaded, count, swap=swap, want=want, letterbox=letterbox)
    questions = list(dict.fromkeys(sample.question for sample in samples))
    others = {}
    if swap and len(questions) > 1:  # the next different question of the data set takes the place of the own one
        following = dict(zip(questions, [*questions[1:], questions[0]], strict=True))
        others = {sample.id: [following[sample.question]] for sample in samples}
    return stream_images(loaded, samples, other_questions=others, want=want, letterbox=letterbox)
