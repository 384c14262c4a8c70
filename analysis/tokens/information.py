"""Mutual information estimated on its own, beside the alignment score that is named after it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

from tokenprune.alignment import MIAlignment, alignment_score, top_k
from tokenprune.analysis.images import AnalysedImage
from tokenprune.analysis.intervals import show, summarise
from tokenprune.analysis.measures import Watch, long_table, new_figure, styled, texts
from tokenprune.analysis.rank_correlation import rank_correlation
from tokenprune.analysis.tokens.alignment import text_of
from tokenprune.analysis.tokens.score_parts import split_score
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.report import Report
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAN = float("nan")
NEIGHBOURS = 3
"""Neighbours of the estimator, scikit-learn's default."""
_SCORES = {
    "by_alignment": "alignment score",
    "by_norm": "its norm part",
    "by_text": "its text part",
    "by_best_word": "cosine, best word of the question",
    "by_information": "estimated information",
    "by_chance": "shuffled: the estimator's own bias",
}


@dataclass(frozen=True, kw_only=True)
class InformationMeasures:
    """One image. NaN means not defined here.

    Attributes:
        rank_alignment: Spearman's correlation of the alignment score with the estimated information of token and text.
        rank_norm: the same of "smallest norm first".
        rank_text: the same of the score's text part.
        kept_overlap: share of the tokens that stage 1 keeps which ranking by estimated information keeps too.
        kept_share: what that would be by chance.
        estimate_swapped: Spearman's correlation of the estimates under the own and another question.
        question_bits: bits per token that the question says about being kept (see `question_information`).
        question_bits_independent: what that would be if every question drew its own random set.
        object_entropy: entropy in bits of lying on an object, the most that a score can say about it.
        by_alignment, by_norm, by_text, by_best_word, by_information: bits that a score says about lying on an object,
            estimated: the score, its two parts, the largest cosine to a word of the question, the estimated
            information.
        by_chance: the same for the alignment score shuffled over tokens: the estimator's bias.
    """

    rank_alignment: float
    rank_norm: float
    rank_text: float
    kept_overlap: float
    kept_share: float
    estimate_swapped: float
    question_bits: float
    question_bits_independent: float
    object_entropy: float
    by_alignment: float
    by_norm: float
    by_text: float
    by_best_word: float
    by_information: float
    by_chance: float


@dataclass(frozen=True, eq=False, kw_only=True)
class InformationReport:
    """`InformationMeasures` over a data set.

    Attributes:
        strategy: the stage that was looked at.
        ids: the images.
        means: by name of a measure, its mean over images with a 95% interval.
    """

    strategy: MIAlignment
    ids: tuple[str, ...]
    means: Mapping[str, Interval]

    def plot(self, ax: "Axes") -> "Axes":
        """Bits that each score says about lying on an object."""
        for y, name in enumerate(_SCORES):
            mean = self.means[name]
            if not mean.units:
                continue
            ends = np.nan_to_num([[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]])
            colour = "#999999" if name == "by_chance" else "#0072B2"
            ax.barh(y, mean.value, xerr=ends, color=colour, height=0.6, capsize=2)
        if self.means["object_entropy"].units:
            ax.axvline(
                self.means["object_entropy"].value, color="black", linestyle="--", linewidth=1, label="all there is"
            )
            ax.legend(loc="lower right")
        ax.set_yticks(range(len(_SCORES)), list(_SCORES.values()))
        ax.set_ylim(len(_SCORES) - 0.5, -0.5)
        ax.set_xlabel("bits about lying on an object, mean over images with 95% interval")
        return ax

    @property
    def explanation(self) -> tuple[str, ...]:
        """What was found, in sentences with numbers."""
        mean = self.means
        found = [
            f"Rank correlation of the alignment score with mutual information estimated over coordinates: "
            f"{show(mean['rank_alignment'])}; of its norm part {show(mean['rank_norm'])}, of its text part "
            f"{show(mean['rank_text'])}. The two rankings keep {show(mean['kept_overlap'], percent=True)} of the same "
            f"tokens ({show(mean['kept_share'], percent=True).split(' ')[0]} by chance).",
        ]
        if mean["question_bits"].units:
            found.append(
                f"The question says {show(mean['question_bits'])} bits per token about what is kept; independent "
                f"random sets would give {show(mean['question_bits_independent'])}."
            )
        if mean["by_alignment"].units:
            found.append(
                f"About lying on an object ({show(mean['object_entropy'])} bits in all) the alignment score says "
                f"{show(mean['by_alignment'])} bits, its norm part {show(mean['by_norm'])}, its text part "
                f"{show(mean['by_text'])}, the best cosine to a word of the question {show(mean['by_best_word'])}; a "
                f"shuffled score {show(mean['by_chance'])}."
            )
        return tuple(found)


def coordinate_information(visual: Float[Tensor, "n d"], text: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    r"""Estimated mutual information of each visual token and the mean text embedding, coordinates taken for samples.

    Token i and $\bar t$ are d pairs of numbers $(v_{ic},\bar t_c)$; their mutual information in nats is estimated by
    nearest neighbours (Kraskov, Stoegbauer and Grassberger, 2004; `sklearn.feature_selection.mutual_info_regression`).
    Unlike the alignment score it does not change when a token is scaled or shifted, and it sees dependence of any
    shape.

    Limits: coordinates of an embedding are no independent draws from one distribution, so this is a measure of how two
    vectors depend on one another, not the information between image and text; with d coordinates its noise is about
    $1/\sqrt d$ nats; and it is invariant to the sign of a dependence. For jointly Gaussian coordinates it estimates
    $-\frac12\ln(1-\rho^2)$.

    Args:
        visual: (n, d), d >= 8.
        text: (m, d), m >= 1.

    Returns:
        float64 (n,), nats, never negative.

    Raises:
        ValueError: when widths differ, the text is empty or d is less than 8.
        ImportError: when scikit-learn is not installed.
    """
    if text.shape[0] == 0 or text.shape[1] != visual.shape[1] or visual.shape[1] < 8:
        raise ValueError(
            f"coordinate_information: visual {tuple(visual.shape)} and text {tuple(text.shape)} must share a width of "
            "at least 8, and the text must have a row"
        )
    x = visual.detach().double().cpu().numpy().T
    y = text.detach().double().mean(0).cpu().numpy()
    estimate: Any = need("sklearn.feature_selection").mutual_info_regression
    return torch.from_numpy(np.asarray(estimate(x, y, n_neighbors=NEIGHBOURS, random_state=0), dtype=np.float64))


def label_information(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """Estimated mutual information in bits of a score and a yes-or-no label over tokens (Ross, 2014, in scikit-learn).

    Args:
        scores: one number per token.
        labels: one label per token.

    Returns:
        Bits, never negative; 0 when all labels are equal.

    Raises:
        ImportError: when scikit-learn is not installed.
    """
    if bool(labels.all()) or not bool(labels.any()):
        return 0.0
    estimate: Any = need("sklearn.feature_selection").mutual_info_classif
    x = scores.detach().double().cpu().numpy()[:, None]
    found = estimate(x, labels.cpu().numpy(), discrete_features=False, n_neighbors=NEIGHBOURS, random_state=0)
    return float(found[0]) / float(np.log(2.0))


def question_information(kept: Bool[Tensor, "q n"]) -> tuple[float, float]:
    r"""What the question says about being kept, given the image: exact, not estimated.

    Given the image, the question decides everything, so over questions that are equally likely the mutual information
    of question and "token i is kept" is the entropy of the share of questions that keep it: $\frac1n\sum_i H(p_i)$.

    Args:
        kept: bool (questions, n), two questions or more.

    Returns:
        Bits per token, and what independent random sets of the same sizes would give on average.

    Raises:
        ValueError: when there are fewer than two questions.

    Examples:
        >>> question_information(torch.tensor([[True, False], [True, False]]))[0]
        0.0
        >>> question_information(torch.tensor([[True, False], [False, True]]))[0]
        1.0
    """
    q = kept.shape[0]
    if q < 2:
        raise ValueError(f"question_information: need two questions or more about the image, got {q}")
    share = kept.double().mean(0).cpu().numpy()
    counts = np.arange(q + 1)
    size = float(kept.double().mean())
    independent = float((binom.pmf(counts, q, size) * _bits(counts / q)).sum())
    return float(_bits(share).mean()), independent


def measure_information(image: AnalysedImage, strategy: MIAlignment) -> InformationMeasures:
    """Estimates for one image.

    Args:
        image: its tokens need a text; `others` and `objects` are used when they are there.
        strategy: the stage to look at.

    Raises:
        ValueError: when the text is missing.
    """
    tokens = image.tokens
    selection = strategy.select(tokens)
    if selection.scores is None or tokens.text is None:
        raise ValueError("measure_information: the strategy gives no scores; use MIAlignment on tokens with a text")
    text = text_of(tokens, strategy)
    scores, parts = selection.scores.double(), split_score(tokens.visual, text)
    estimate = coordinate_information(tokens.visual, text).to(scores.device)
    by_estimate = set(top_k(estimate, selection.kept)[0].tolist())
    swapped, bits = _NAN, (_NAN, _NAN)
    if image.others:
        other = image.others[0]
        swapped = rank_correlation(estimate, coordinate_information(other.visual, text_of(other, strategy)))
        sets = [selection.indices, *(strategy.select(one).indices for one in image.others)]
        masks = torch.zeros(len(sets), tokens.n, dtype=torch.bool)
        for row, indices in zip(masks, sets, strict=True):
            row[indices.cpu()] = True
        bits = question_information(masks)
    on = image.on_object
    known: dict[str, float] = dict.fromkeys(_SCORES, _NAN)
    if image.objects:
        asked = tokens.text if tokens.question is None else tokens.text[tokens.question]
        shuffled = scores[torch.randperm(tokens.n, generator=torch.Generator().manual_seed(0))]
        candidates = {
            "by_alignment": scores,
            "by_norm": parts.norm,
            "by_text": parts.text,
            "by_best_word": alignment_score(tokens.visual, asked, metric="cosine", reduce="max"),
            "by_information": estimate,
            "by_chance": shuffled,
        }
        known = {name: label_information(value, on) for name, value in candidates.items()}
    return InformationMeasures(
        rank_alignment=rank_correlation(scores, estimate),
        rank_norm=rank_correlation(parts.norm, estimate),
        rank_text=rank_correlation(parts.text, estimate),
        kept_overlap=len(by_estimate & set(selection.indices.tolist())) / selection.kept,
        kept_share=selection.kept / tokens.n,
        estimate_swapped=swapped,
        question_bits=bits[0],
        question_bits_independent=bits[1],
        object_entropy=float(_bits(np.array([float(on.double().mean())]))[0]) if image.objects else _NAN,
        **known,
    )


def analyse_information(images: Iterable[AnalysedImage], strategy: MIAlignment) -> InformationReport:
    """`measure_information` over a data set, in one pass.

    Raises:
        ValueError: when there is no image, or one has no text.
    """
    ids: list[str] = []
    rows: list[InformationMeasures] = []
    for image in images:
        ids.append(image.id)
        rows.append(measure_information(image, strategy))
    return InformationReport(strategy=strategy, ids=tuple(ids), means=summarise(rows, ids))


def _bits(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inside = np.clip(p, 1e-300, 1.0), np.clip(1.0 - p, 1e-300, 1.0)
    return np.asarray(-p * np.log2(inside[0]) - (1.0 - p) * np.log2(inside[1]))


@styled
def information(
    images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy] = (), *, watch: Watch = iter
) -> Report:
    """Estimate mutual information on its own, and compare it with the alignment score.

    Args:
        images: with the same image under other questions.
        strategies: one mi_alignment(keep=...).
        watch: wraps the images, for a progress bar.

    Raises:
        ValueError: for several strategies or another one.
    """
    used = tuple(strategies) or (parse("mi_alignment(keep=0.8)"),)
    stage = used[0]
    if len(used) > 1 or not isinstance(stage, MIAlignment):
        raise ValueError(f"--strategy {used[-1]!r}: information looks at one stage; give one mi_alignment(keep=...)")
    report = analyse_information(watch(images), stage)
    figure = new_figure(8.5, 3.6)
    report.plot(figure.subplots())
    body = [[name.replace("_", " "), show(mean)] for name, mean in report.means.items()]
    return Report(
        title="Is the alignment score mutual information?",
        kind="analyze information",
        shown=[texts("Estimated information", ("measure", "value"), body)],
        tables={"information": long_table([repr(stage)], [report.means])},
        figures={"information": figure},
        notes={
            "information.png": "Estimated from nearest neighbours; grey: the same estimate for a shuffled score, which "
            "knows nothing."
        },
        findings=report.explanation,
        configuration={"images": len(report.ids), "strategies": [repr(stage)]},
    )
