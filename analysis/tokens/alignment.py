"""Does stage 1 read the question? Alignment scores against norms, other questions and annotated objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.alignment import MIAlignment
from tokenprune.analysis.images import AnalysedImage
from tokenprune.analysis.intervals import show, summarise
from tokenprune.analysis.measures import COLOURS, Watch, long_table, means_table, new_figure, styled
from tokenprune.analysis.rank_correlation import rank_correlation
from tokenprune.analysis.tokens.score_parts import split_score
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.core.tokens import Tokens
from tokenprune.evaluate.report import Report
from tokenprune.evaluate.statistics import Interval
from tokenprune.kernels import top_k

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGE_ONE = (
    "mi_alignment(keep=0.8)",
    "mi_alignment(keep=0.8, text='question')",
    "mi_alignment(keep=0.8, metric='cosine')",
    "mi_alignment(keep=0.8, metric='cosine', reduce='max')",
    "mi_alignment(keep=0.8, metric='cosine', reduce='max', text='question')",
)
"""The options of stage 1 that are compared when none are given."""
_NAN = float("nan")
_SHOWN = {
    "norm_share": "score variance from norms",
    "norm_correlation": "rank correlation with small norm",
    "norm_overlap": "dropped: also by norm alone",
    "question_change": "dropped: changes with the question",
    "object_dropped": "dropped: on objects",
    "object_dropped_by_norm": "dropped by norm alone: on objects",
    "object_dropped_by_text": "dropped by text alone: on objects",
}
_CHANCE = {
    "norm_overlap": "dropped_share",
    "object_dropped": "object_share",
    "object_dropped_by_norm": "object_share",
    "object_dropped_by_text": "object_share",
}


@dataclass(frozen=True, kw_only=True)
class AlignmentMeasures:
    """What stage 1 goes by on one image. Shares are in [0, 1] unless said otherwise; NaN means not defined here.

    Attributes:
        norm_share: share of the score's variance that comes from the norm part (see `ScoreParts.variance_shares`);
            defined for the default score (metric="sqeuclidean", reduce="mean") alone.
        text_share: the rest, from the text part.
        norm_correlation: Spearman's rank correlation of the score with "smallest norm first".
        norm_overlap: share of the dropped tokens that dropping the largest norms would drop too.
        dropped_share: share of the tokens dropped: what `norm_overlap` would be by chance.
        question_correlation: Spearman's correlation of the scores under two questions, mean over the other questions.
        question_change: share of the dropped set that is kept when the question is replaced by another one, mean over
            the other questions. 0: the question does not matter.
        question_change_kept: the same for the kept set.
        norm_ratio: mean norm of the visual tokens over mean norm of the text tokens.
        object_share: share of the tokens that lie on annotated objects: what the next two would be by chance.
        object_dropped: share of the dropped tokens that lie on objects.
        object_dropped_by_norm: the same when the largest norms are dropped instead.
        object_dropped_by_text: the same when the smallest text parts are dropped instead.
        object_norm_ratio: mean squared norm of tokens on objects over that of the others.
    """

    norm_share: float
    text_share: float
    norm_correlation: float
    norm_overlap: float
    dropped_share: float
    question_correlation: float
    question_change: float
    question_change_kept: float
    norm_ratio: float
    object_share: float
    object_dropped: float
    object_dropped_by_norm: float
    object_dropped_by_text: float
    object_norm_ratio: float


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentReport:
    """`AlignmentMeasures` over a data set.

    Attributes:
        strategy: the stage that was looked at.
        ids: the images.
        images: one entry per image.
        means: by name of a measure, its mean over images with a 95% interval.
    """

    strategy: MIAlignment
    ids: tuple[str, ...]
    images: tuple[AlignmentMeasures, ...]
    means: Mapping[str, Interval]

    @property
    def explanation(self) -> tuple[str, ...]:
        """What was found, in sentences with numbers."""
        mean = self.means
        found = []
        if mean["norm_share"].units:
            found.append(
                f"Of the score's variance {show(mean['norm_share'], percent=True)} comes from the norms of the visual "
                f"tokens and {show(mean['text_share'], percent=True)} from the text."
            )
        found.append(
            f"Rank correlation with 'smallest norm first': {show(mean['norm_correlation'])}. Of the dropped tokens, "
            f"{show(mean['norm_overlap'], percent=True)} are the largest norms "
            f"({show(mean['dropped_share'], percent=True).split(' ')[0]} by chance)."
        )
        if mean["question_change"].units:
            found.append(
                f"Another question changes {show(mean['question_change'], percent=True)} of what is dropped and "
                f"{show(mean['question_change_kept'], percent=True)} of what is kept."
            )
        if mean["object_dropped"].units:
            found.append(
                f"Of the dropped tokens, {show(mean['object_dropped'], percent=True)} lie on objects, which are "
                f"{show(mean['object_share'], percent=True)} of all tokens; dropping by norm alone "
                f"{show(mean['object_dropped_by_norm'], percent=True)}, by the text part alone "
                f"{show(mean['object_dropped_by_text'], percent=True)}. The squared norm of object tokens is "
                f"{show(mean['object_norm_ratio'])} times that of the others."
            )
        return tuple(found)

    def plot(self, ax: "Axes", *, label: str | None = None, colour: str = "#0072B2", offset: float = 0.0) -> "Axes":
        """The shares with their intervals, and as crosses what chance would give.

        Args:
            ax: where to draw; several reports may share it.
            label: for the legend; None takes the strategy's text.
            colour: of the points.
            offset: moves the points down by this part of a line, so that several reports do not hide one another.
        """
        for y, name in enumerate(_SHOWN):
            mean = self.means[name]
            if not mean.units:
                continue
            ends = np.nan_to_num([[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]])
            ax.errorbar(mean.value, y + offset, xerr=ends, fmt="o", markersize=4, color=colour, capsize=2)
            if name in _CHANCE:
                ax.plot(self.means[_CHANCE[name]].value, y + offset, "x", color="#555555", markersize=5)
        ax.plot([], [], "o", color=colour, label=repr(self.strategy) if label is None else label)
        ax.axvline(0.0, color="#999999", linewidth=0.8)
        ax.set_yticks(range(len(_SHOWN)), list(_SHOWN.values()))
        ax.set_ylim(len(_SHOWN) - 0.5, -0.5)
        ax.set_xlabel("share or correlation, mean over images with 95% interval; x: by chance")
        ax.legend(loc="best")
        return ax


def measure_alignment(image: AnalysedImage, strategy: MIAlignment) -> AlignmentMeasures:
    """What `strategy` goes by on one image.

    Args:
        image: its tokens need a text; `others` and `objects` are used when they are there.
        strategy: the stage to look at; its `keep` must drop at least one token and keep one.

    Raises:
        ValueError: when the stage drops nothing, or the text is missing.
    """
    tokens, n = image.tokens, image.tokens.n
    selection = strategy.select(tokens)
    dropped = _dropped(selection.indices, n)
    count = int(dropped.sum())
    if count == 0:
        raise ValueError(
            f"measure_alignment: {strategy!r} drops none of the {n} tokens of image {image.id!r}; choose a smaller keep"
        )
    text = text_of(tokens, strategy)
    parts = split_score(tokens.visual, text)
    by_norm, by_text = (_dropped(top_k(part, selection.kept)[0], n) for part in (parts.norm, parts.text))
    default = strategy.metric == "sqeuclidean" and strategy.reduce == "mean"
    shares = parts.variance_shares if default else (_NAN, _NAN)
    scores = _scores(selection.scores)
    correlations, changes = [], []
    for other in image.others:
        swapped = strategy.select(other)
        correlations.append(rank_correlation(scores, _scores(swapped.scores)))
        changes.append(int((dropped & ~_dropped(swapped.indices, n)).sum()))
    text_norm = float(text.double().norm(dim=-1).mean())
    on, squared = image.on_object, -parts.norm
    both_sides = bool(on.any()) and not bool(on.all())
    annotated = bool(image.objects)
    outside = float(squared[~on].mean()) if both_sides else 0.0
    return AlignmentMeasures(
        norm_share=shares[0],
        text_share=shares[1],
        norm_correlation=rank_correlation(scores, parts.norm),
        norm_overlap=int((dropped & by_norm).sum()) / count,
        dropped_share=count / n,
        question_correlation=_mean(correlations),
        question_change=_mean([change / count for change in changes]),
        question_change_kept=_mean([change / selection.kept for change in changes]),
        norm_ratio=float(squared.sqrt().mean()) / text_norm if text_norm > 0.0 else _NAN,
        object_share=float(on.double().mean()) if annotated else _NAN,
        object_dropped=int((dropped & on).sum()) / count if annotated else _NAN,
        object_dropped_by_norm=int((by_norm & on).sum()) / count if annotated else _NAN,
        object_dropped_by_text=int((by_text & on).sum()) / count if annotated else _NAN,
        object_norm_ratio=float(squared[on].mean()) / outside if outside > 0.0 else _NAN,
    )


def analyse_alignment(images: Iterable[AnalysedImage], strategies: Sequence[MIAlignment]) -> list[AlignmentReport]:
    """`measure_alignment` over a data set for several stages, in one pass over the images.

    Raises:
        ValueError: when there is no image or no strategy.

    Examples:
        >>> tokens = Tokens(torch.tensor([[1.0], [2.0], [3.0]]), text=torch.tensor([[0.0]]))
        >>> image = AnalysedImage(id="a", tokens=tokens, objects=((2,),))
        >>> (report,) = analyse_alignment([image], [MIAlignment(keep=2)])
        >>> report.means["norm_correlation"].value, report.means["object_dropped"].value
        (1.0, 1.0)
    """
    if not strategies:
        raise ValueError("analyse_alignment: strategies is empty; give at least one, for example MIAlignment(0.8)")
    ids: list[str] = []
    rows: list[list[AlignmentMeasures]] = [[] for _ in strategies]
    for image in images:
        ids.append(image.id)
        for own, strategy in zip(rows, strategies, strict=True):
            own.append(measure_alignment(image, strategy))
    return [
        AlignmentReport(strategy=strategy, ids=tuple(ids), images=tuple(own), means=summarise(own, ids))
        for strategy, own in zip(strategies, rows, strict=True)
    ]


def _dropped(kept: Int[Tensor, " k"], n: int) -> Bool[Tensor, " n"]:
    mask = torch.ones(n, dtype=torch.bool, device=kept.device)
    mask[kept] = False
    return mask


def text_of(tokens: Tokens, strategy: MIAlignment) -> Float[Tensor, "m d"]:
    """The text embeddings that the stage looks at."""
    if tokens.text is None:  # `select` has checked both; this tells the type checker
        raise ValueError("measure_alignment: needs Tokens.text")
    return tokens.text if strategy.text == "prompt" or tokens.question is None else tokens.text[tokens.question]


def _scores(scores: Tensor | None) -> Float[Tensor, " n"]:
    if scores is None:
        raise ValueError("measure_alignment: the strategy gives no scores; use MIAlignment")
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else _NAN


@styled
def alignment(
    images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy] = (), *, watch: Watch = iter
) -> Report:
    """Does stage 1 read the question, or does it drop the largest norms?

    Args:
        images: with the same image under other questions, for what changes with the question.
        strategies: mi_alignment(keep=...) with options.
        watch: wraps the images, for a progress bar.

    Raises:
        ValueError: when a strategy is another one.
    """
    used = tuple(strategies) or tuple(parse(text) for text in STAGE_ONE)
    stages = [strategy for strategy in used if isinstance(strategy, MIAlignment)]
    if len(stages) < len(used):
        wrong = next(strategy for strategy in used if not isinstance(strategy, MIAlignment))
        raise ValueError(f"--strategy {wrong!r}: alignment looks at stage 1; give mi_alignment(keep=...) with options")
    rest = iter(watch(images))
    first = next(rest)  # drawn; all others are only measured
    reports, names = analyse_alignment(chain([first], rest), stages), [repr(stage) for stage in stages]
    columns = {
        "norm_share": ("variance\nfrom norms", True),
        "norm_correlation": ("rank corr.\nsmall norm", False),
        "norm_overlap": ("dropped also\nby norm", True),
        "question_change": ("dropped: changes\nwith question", True),
        "question_change_kept": ("kept: changes\nwith question", True),
        "object_dropped": ("dropped:\non objects", True),
        "object_share": ("all tokens:\non objects", True),
    }
    figure = new_figure(13.5, 5.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    tokens, stage = first.tokens, stages[0]
    if tokens.text is not None:
        objects = first.on_object if first.objects else None
        split_score(tokens.visual, tokens.text).plot(left, objects=objects, dropped=reports[0].images[0].dropped_share)
        left.set_title(f"image {first.id}, default score, {stage!r}", loc="left", fontsize=8)
    for place, report in enumerate(reports):
        offset = 0.7 * (place / len(reports) - 0.5 + 0.5 / len(reports))
        report.plot(right, colour=COLOURS[place % len(COLOURS)], offset=offset)
    right.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), fontsize=7, ncols=1)
    findings = [f"{stage!r} ({len(reports[0].ids)} images):", *(f"  {text}" for text in reports[0].explanation)]
    return Report(
        title="Does stage 1 read the question?",
        kind="analyze alignment",
        shown=[means_table("Stage 1", names, [report.means for report in reports], columns)],
        tables={"alignment": long_table(names, [report.means for report in reports])},
        figures={"alignment": figure},
        notes={
            "alignment.png": "Left: the score of one image against its norm part; a line means that the norm decides. "
            "Right: what is dropped, with 95% intervals over images; crosses: by chance."
        },
        findings=findings,
        configuration={"images": len(reports[0].ids), "strategies": names},
    )
