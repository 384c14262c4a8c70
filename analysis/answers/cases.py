"""Case studies: what each method kept of one image, and what the model then said, token by token."""

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenprune.analysis.measures import Watch, styled, texts
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.metrics import exact_match
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.report.pictures import overlay, seen_picture
from tokenprune.evaluate.report.slides import Card, Picture, Slide, Word, jpeg
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.statistics import agreement

if TYPE_CHECKING:
    from tokenprune.evaluate.loading import LoadedModel
    from tokenprune.evaluate.report.pictures import Pixels

END = "\u23ce"
"""Shown for the token that ends an answer."""


DEFAULT_STRATEGIES = ("random", "uniform_grid", "greedy_repmax", "trim_tokenator", "divprune", "fastv")


@dataclass(frozen=True, kw_only=True)
class Told:
    """One answer, token by token.

    Attributes:
        strategy: what pruned, as text; "dense" for the unpruned model.
        answer: the text without special tokens.
        tokens: text of every generated token; `END` for one without text.
        probabilities: the model's probability of each token when it was chosen (softmax of the logits, in float32).
        correct: exact match with a reference.
        kept: for the sample's first image the kept tokens; None for dense, which keeps all.
        tokens_in: visual tokens of that image.
        merged: True when the method makes new tokens.
    """

    strategy: str
    answer: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    correct: bool
    kept: tuple[int, ...] | None
    tokens_in: int
    merged: bool = False

    @property
    def log_probability(self) -> float:
        """Mean log probability of the answer's tokens; how sure the model was of what it said."""
        return sum(math.log(max(p, 1e-30)) for p in self.probabilities) / max(1, len(self.probabilities))


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One sample under every method.

    Attributes:
        sample: the question with its image.
        dense: what the unpruned model says.
        told: what it says under each strategy.
    """

    sample: Sample
    dense: Told
    told: tuple[Told, ...]

    @property
    def changed(self) -> tuple[bool, ...]:
        """Per strategy: another answer than dense (after normalisation)?"""
        return tuple(not agreement([one.answer], [self.dense.answer])[0] for one in self.told)

    @property
    def change(self) -> tuple[int, float]:
        """How much pruning changed: number of other answers, then the largest shift of the mean log probability."""
        shifts = [abs(one.log_probability - self.dense.log_probability) for one in self.told]
        return sum(self.changed), max(shifts, default=0.0)


def study_cases(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    strategies: Sequence[PruningStrategy],
    *,
    max_new_tokens: int = 16,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Case]:
    """Every sample without pruning and under every strategy, one at a time, greedily decoded.

    Args:
        loaded: the model and its processor, from `tokenprune.evaluate.loading.load`.
        samples: the data set; references may be captions.
        strategies: with their budgets.
        max_new_tokens: length limit of an answer.
        watch: wraps the samples, for a progress bar.

    Raises:
        ValueError: when there is no sample or no strategy, or a strategy does not fit the model.
    """
    if not samples or not strategies:
        raise ValueError(
            f"study_cases: need at least one sample and one strategy, got {len(samples)} and {len(strategies)}"
        )
    from tokenprune.models import adapter_for
    from tokenprune.models.prompt.choose import check_strategy_fits

    adapter = adapter_for(loaded.model)
    adapter.clip = loaded.clip
    for strategy in strategies:
        check_strategy_fits(strategy, adapter)
    cases = []
    for sample in watch(samples):
        dense, *told = (_tell(loaded, sample, one, max_new_tokens) for one in (None, *strategies))
        cases.append(Case(sample=sample, dense=dense, told=tuple(told)))
    return cases


def most_changed(cases: Sequence[Case], count: int) -> list[Case]:
    """The cases that pruning changed most, most changed first; ties in the data set's order.

    Args:
        cases: to choose from.
        count: how many at most, at least 1.

    Raises:
        ValueError: when count is not positive.
    """
    if count < 1:
        raise ValueError(f"most_changed: count must be 1 or more, got {count}")
    order = sorted(range(len(cases)), key=lambda place: (*(-value for value in cases[place].change), place))
    return [cases[place] for place in order[:count]]


def different(tokens: Sequence[str], dense: Sequence[str]) -> list[bool]:
    """Per token: is it not part of what two answers have in common (longest matching blocks)?

    Examples:
        >>> different(["a", "red", "dog"], ["a", "black", "dog"])
        [False, True, False]
    """
    marks = [True] * len(tokens)
    for block in difflib.SequenceMatcher(a=dense, b=tokens, autojunk=False).get_matching_blocks():
        marks[block.b : block.b + block.size] = [False] * block.size
    return marks


def case_slide(loaded: "LoadedModel", case: Case, *, side: int = 320) -> Slide:
    """A case as a slide of a report: a card per method, with kept tokens, answer and probabilities.

    Args:
        loaded: the model that the case was studied on.
        case: the case.
        side: length of a picture's longer side in pixels.
    """
    seen = _seen(loaded, case.sample)
    cards = []
    for one, changed in zip((case.dense, *case.told), (False, *case.changed), strict=True):
        marks = different(one.tokens, case.dense.tokens)
        words = [
            Word(text=text, probability=p, changed=mark)
            for text, p, mark in zip(one.tokens, one.probabilities, marks, strict=True)
        ]
        kept = one.tokens_in if one.kept is None else len(one.kept)
        right = "right" if one.correct else "not a reference"
        cards.append(
            Card(
                title=one.strategy,
                picture=_picture(seen, one, side),
                words=words,
                lines=(f"{kept} of {one.tokens_in} tokens; {right}",),
                tone="bad" if changed else "good",
                mark="" if one is case.dense else "changed" if changed else "as dense",
            )
        )
    references = "; ".join(case.sample.answers[:3])
    return Slide(title=case.sample.question, lines=(f"{case.sample.id}. Reference: {references}",), cards=cards)


@torch.no_grad()
def _tell(loaded: "LoadedModel", sample: Sample, strategy: PruningStrategy | None, max_new_tokens: int) -> Told:
    from tokenprune.evaluate.batches import processed
    from tokenprune.models import prune

    model, processor = loaded.model, loaded.processor
    inputs = {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in processed(processor, [sample]).items()
    }
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    kept, merged = None, False
    if strategy is None:
        out = model.generate(**inputs, **options)
    else:
        with prune(model, strategy) as record:
            out = model.generate(**inputs, **options)
        first = record.images[0]
        kept, merged = tuple(first.indices.tolist()), first.merged
    new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    chosen = [
        float(torch.softmax(logits[0].float(), dim=-1)[token]) for token, logits in zip(new, out.logits, strict=True)
    ]
    answer = str(processor.decode(new, skip_special_tokens=True)).strip()
    return Told(
        strategy="dense" if strategy is None else repr(strategy),
        answer=answer,
        tokens=_pieces(processor, new),
        probabilities=tuple(chosen),
        correct=exact_match(answer, sample.answers),
        kept=kept,
        tokens_in=_visual_tokens(loaded, inputs, len(sample.images)) if strategy is None else first.tokens_in,
        merged=merged,
    )


def _visual_tokens(loaded: "LoadedModel", inputs: dict[str, Any], images: int) -> int:
    """Tokens of the first image; images of one prompt are taken as equally large, which only matters for the count."""
    placeholder = int(loaded.model.config.image_token_id)
    return int((inputs["input_ids"] == placeholder).sum()) // images


def _pieces(processor: Any, tokens: Sequence[int]) -> tuple[str, ...]:  # noqa: ANN401
    """What each token adds to the text: decoding token by token would lose the spaces."""
    ends = [str(processor.decode(tokens[:length], skip_special_tokens=True)) for length in range(len(tokens) + 1)]
    return tuple(after[len(before) :] or END for before, after in itertools.pairwise(ends))


def _seen(loaded: "LoadedModel", sample: Sample) -> "Pixels | None":
    """The first image as the model saw it; None where one image is several pictures."""
    from tokenprune.evaluate.batches import processed

    pixels = processed(loaded.processor, [sample]).get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        return None
    return seen_picture(loaded.processor, np.asarray(pixels[0].float()))


def _picture(seen: "Pixels | None", told: Told, side: int) -> Picture | None:
    if seen is None:
        return None
    height, width = seen.shape[:2]
    rows = round((told.tokens_in * height / width) ** 0.5)
    if rows < 1 or told.tokens_in % rows:  # no raster that could be drawn
        return None
    kept = range(told.tokens_in) if told.kept is None else told.kept
    drawn = overlay(seen, sorted(kept), (rows, told.tokens_in // rows), merged=told.merged, side=side)
    return jpeg(drawn, f"{told.strategy}: {len(kept)} of {told.tokens_in} tokens kept")


@styled
def cases(
    model: "LoadedModel",
    samples: Sequence[Sample],
    strategies: Sequence[PruningStrategy] = (),
    *,
    sample: Sequence[str] = (),
    cases: int = 8,
    max_new_tokens: int = 16,
    watch: Watch = iter,
) -> Report:
    """Show what each method kept and what the model then said, word by word, on the most changed samples.

    Args:
        model: with its processor.
        samples: the data set.
        strategies: with their budgets; a few of each kind when there are none.
        sample: ids of samples to show instead of the most changed.
        cases: how many are shown.
        max_new_tokens: length limit of an answer.
        watch: wraps the samples, for a progress bar.

    Raises:
        ValueError: when there is no sample of an id.
    """
    used = tuple(strategies) or tuple(parse(name, keep=0.111) for name in DEFAULT_STRATEGIES)
    chosen = list(samples)
    if sample:
        by_id = {one.id: one for one in samples}
        unknown = [name for name in sample if name not in by_id]
        if unknown:
            some = ", ".join(list(by_id)[:3])
            raise ValueError(f"--sample {unknown[0]}: no such id among {len(by_id)} samples, which begin with {some}")
        chosen = [by_id[name] for name in sample]
    studied = study_cases(model, chosen, used, max_new_tokens=max_new_tokens, watch=watch)
    shown = studied if sample else most_changed(studied, cases)
    names = [repr(strategy) for strategy in used]
    header = ("sample", "question", "references", "strategy", "answer", "correct", "as_dense", "kept", "tokens_in")
    columns = (*header, "mean_log_probability", "tokens", "probabilities")
    return Report(
        title="What pruning changed, answer by answer",
        kind="analyze cases",
        shown=[texts("Answers", ["Sample", "Question", "Reference", "dense", *names], map(_line, shown))],
        tables={"cases": frame(columns, list(chain(*map(_rows, studied))))},
        galleries={"cases": [case_slide(model, case) for case in shown]},
        notes={
            "cases": "Number after a word: its probability in percent, shaded the more the less sure. Underlined: not "
            f"in the dense answer. ⏎ ends an answer. {_order(len(shown), len(studied), chosen=bool(sample))}",
            "cases.csv": "All samples that ran, also those that are not shown.",
        },
        findings=[
            f"{name}: another answer than dense on {sum(case.changed[place] for case in studied)} of {len(studied)} "
            "samples."
            for place, name in enumerate(names)
        ],
        configuration={
            "images": len(studied),
            "strategies": names,
            "max_new_tokens": max_new_tokens,
            "samples": [case.sample.id for case in shown],
        },
    )


def _order(shown: int, ran: int, *, chosen: bool) -> str:
    if chosen:
        return "The samples were chosen by their ids."
    return (
        f"Shown: the {shown} of {ran} samples that changed most, by the number of other answers, then by the largest "
        "shift of the mean log probability. They are the worst cases, not typical ones."
    )


def _line(case: Case) -> list[str]:
    answers = [f"{one.answer or '(nothing)'}{' *' if changed else ''}" for one, changed in _told(case)]
    return [case.sample.id, case.sample.question, case.sample.answers[0], *answers]


def _told(case: Case) -> list[tuple[Told, bool]]:
    return list(zip((case.dense, *case.told), (False, *case.changed), strict=True))


def _rows(case: Case) -> list[Sequence[object]]:
    return [
        (
            case.sample.id,
            case.sample.question,
            " | ".join(case.sample.answers),
            one.strategy,
            one.answer,
            one.correct,
            not changed,
            one.tokens_in if one.kept is None else len(one.kept),
            one.tokens_in,
            one.log_probability,
            " ".join(repr(token) for token in one.tokens),
            " ".join(f"{p:.4f}" for p in one.probabilities),
        )
        for one, changed in _told(case)
    ]
