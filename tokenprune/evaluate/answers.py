"""Answers with their probabilities: what analyses of single answers need beside the text."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.core.signals import IMAGE_KEY, Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.answer import answer_lengths, answer_prompt, end_ids
from tokenprune.evaluate.batches import PictureNames, processed
from tokenprune.evaluate.loading import LoadedModel, on_device
from tokenprune.evaluate.metrics import exact_match
from tokenprune.evaluate.samples import Sample
from tokenprune.models import Prompt, Vision, adapter_for, build_prompt
from tokenprune.models.encode.clip import see


@dataclass(frozen=True, eq=False, kw_only=True)
class AskedBatch:
    """Samples as dense prompts, their pictures encoded.

    Attributes:
        samples: one per row.
        units: for each row, what the bootstrap draws: a name of its pictures.
        prompt: the dense prompts.
        vision: the encoded pictures, for other questions about them.
    """

    samples: tuple[Sample, ...]
    units: tuple[str, ...]
    prompt: Prompt
    vision: Vision


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        text: what was generated.
        correct: whether it is one of the right answers.
        confidence: probability that the model gave this whole answer, the product over its tokens (end token included).
        first: float32 (vocabulary,), log-probabilities of the first answer token, on the CPU.
    """

    text: str
    correct: bool
    confidence: float
    first: Float[Tensor, " v"]


def signals_of(strategies: Collection[PruningStrategy]) -> frozenset[Signal]:
    """Signals that some strategies read, and the key by which random ones tell images apart."""
    return frozenset({IMAGE_KEY}).union(*(strategy.needs for strategy in strategies))


def ask_batches(
    loaded: LoadedModel, samples: Sequence[Sample], *, batch_size: int = 16, want: Collection[Signal] = ()
) -> Iterator[AskedBatch]:
    """Dense prompts of a data set, one batch in memory at a time; every picture is encoded once per batch.

    Args:
        loaded: the model and its processor.
        samples: the data set.
        batch_size: samples per batch.
        want: signals that strategies will read, from `signals_of`.

    Raises:
        ValueError: when there is no sample, or batch_size is not positive.
    """
    if not samples:
        raise ValueError("ask_batches: samples is empty; give at least one sample")
    if batch_size < 1:
        raise ValueError(f"ask_batches: batch_size must be 1 or more, got {batch_size}")
    adapter, names = adapter_for(loaded.model), PictureNames()
    adapter.clip = loaded.clip
    for start in range(0, len(samples), batch_size):
        part = tuple(samples[start : start + batch_size])
        with torch.no_grad():
            inputs = on_device(processed(loaded.processor, part), loaded)
            vision = see(adapter, inputs, want)
            prompt = build_prompt(adapter, inputs, vision)
        units = tuple(" ".join(names.of([sample])) for sample in part)
        yield AskedBatch(samples=part, units=units, prompt=prompt, vision=vision)


def ask_again(loaded: LoadedModel, batch: AskedBatch, questions: Sequence[tuple[str, Sequence[str]]]) -> AskedBatch:
    """The same pictures with other questions; they are not encoded again.

    Args:
        loaded: the model.
        batch: from `ask_batches`.
        questions: for each row a question and its right answers.
    """
    samples = tuple(
        replace(sample, question=text, answers=tuple(answers))
        for sample, (text, answers) in zip(batch.samples, questions, strict=True)
    )
    with torch.no_grad():
        inputs = on_device(processed(loaded.processor, samples), loaded)
        prompt = build_prompt(adapter_for(loaded.model), inputs, batch.vision)
    return AskedBatch(samples=samples, units=batch.units, prompt=prompt, vision=batch.vision)


@torch.no_grad()
def answer(
    loaded: LoadedModel,
    batch: AskedBatch,
    strategy: PruningStrategy | None = None,
    *,
    selections: Sequence[Selection] | None = None,
    positions: Positions | None = None,
    max_new_tokens: int = 16,
) -> list[Answer]:
    """Greedy answers to a batch.

    Args:
        loaded: the model.
        batch: from `ask_batches` or `ask_again`.
        strategy: what prunes; None for nothing.
        selections: given, these tokens are kept instead, one entry per image; `strategy` must then be None.
        positions: "original" or "compact"; None leaves it to the strategy's authors ("compact" for given selections).
        max_new_tokens: length limit.

    Raises:
        ValueError: when both a strategy and selections are given.
    """
    if strategy is not None and selections is not None:
        raise ValueError("answer: give a strategy or selections, not both")
    ran = answer_prompt(
        adapter_for(loaded.model),
        batch.prompt,
        strategy,
        selections=selections,
        positions=positions,
        max_new_tokens=max_new_tokens,
        options={"output_logits": True},
    )
    new = ran.new.cpu()
    # (steps, rows): the log-probability of the token that was chosen at each step.
    steps = [torch.log_softmax(logits.float(), dim=-1).cpu() for logits in ran.logits]
    chosen = torch.stack([step.gather(1, new[:, i : i + 1])[:, 0] for i, step in enumerate(steps)])
    texts = [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    return [
        Answer(
            text=text,
            correct=exact_match(text, sample.answers),
            confidence=float(chosen[:length, row].sum().exp()),
            first=steps[0][row],
        )
        for row, (text, sample, length) in enumerate(
            zip(texts, batch.samples, answer_lengths(new, end_ids(loaded.model)), strict=True)
        )
    ]
