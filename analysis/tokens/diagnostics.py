"""What one selection is like under every objective, and how much two selections share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.alignment import alignment_score
from tokenprune.analysis.spectrum import effective_rank, unit_rows
from tokenprune.core.selection import Selection
from tokenprune.core.tokens import Tokens
from tokenprune.repmax import mean_pairwise_distance, random_expectation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class SelectionDiagnostics:
    """One selection measured. All geometry is on unit vectors (cosine distance); NaN means not defined here.

    Max-sum dispersion alone flatters: a set can win it and hold duplicates or leave much of the image uncovered, so
    look at coverage, minimum distance and effective rank beside it.

    Attributes:
        kept: number of tokens kept.
        mean_distance: mean pairwise cosine distance of the kept tokens, the RepMax objective; NaN for one token.
        distance_ratio: `mean_distance` over its expectation for a uniformly random subset.
        min_distance: smallest pairwise cosine distance, the max-min objective; NaN for one token.
        effective_rank: see `tokenprune.analysis.effective_rank`; at most `kept`.
        log_det: log det(I + G) of the kept tokens' cosine matrix G, a determinantal objective; k ln 2 when orthogonal.
        coverage_error: mean over all tokens of 1 - (largest cosine to a kept token). Small is good.
        coverage_worst: the same, worst token.
        duplicates: kept tokens beyond the first of each exactly equal vector.
        alignment: mean alignment score of the kept tokens, in standard deviations above the mean of all tokens; NaN
            without a text.
    """

    kept: int
    mean_distance: float
    distance_ratio: float
    min_distance: float
    effective_rank: float
    log_det: float
    coverage_error: float
    coverage_worst: float
    duplicates: int
    alignment: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Overlap:
    """Jaccard overlap of several selections: |A and B| / |A or B|.

    Attributes:
        names: what the selections are called.
        jaccard: float (s, s), symmetric, ones on the diagonal.
    """

    names: tuple[str, ...]
    jaccard: npt.NDArray[np.float64]

    def plot(self, ax: "Axes") -> "Axes":
        """The matrix with its numbers."""
        ax.imshow(self.jaccard, vmin=0.0, vmax=1.0, cmap="Blues")
        for (row, column), value in np.ndenumerate(self.jaccard):
            colour = "white" if value > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        ax.set_xticks(range(len(self.names)), self.names, rotation=35, ha="right")
        ax.set_yticks(range(len(self.names)), self.names)
        ax.grid(visible=False)
        return ax


def diagnose(tokens: Tokens, selection: Selection) -> SelectionDiagnostics:
    """Measure one selection under every objective.

    Where the method made new vectors (`Selection.features`), those are measured; alignment too.

    Args:
        tokens: the image it was made from.
        selection: what a strategy kept of it.

    Raises:
        ValueError: when the selection is empty or was made from another number of tokens.

    Examples:
        >>> tokens = Tokens(torch.eye(4))
        >>> found = diagnose(tokens, Selection(indices=torch.tensor([0, 2]), total=4))
        >>> found.mean_distance, found.coverage_error, round(found.effective_rank, 6)
        (1.0, 0.5, 2.0)
    """
    if selection.total != tokens.n:
        raise ValueError(
            f"diagnose: the selection was made from {selection.total} tokens but tokens has {tokens.n}; give the image "
            "that went into the strategy"
        )
    if selection.kept == 0:
        raise ValueError("diagnose: the selection keeps no token; strategies always keep at least one")
    features = tokens.visual[selection.indices] if selection.features is None else selection.features
    kept, everything = unit_rows(features), unit_rows(tokens.visual)
    k = kept.shape[0]
    gram = kept @ kept.T
    nearest = 1.0 - (everything @ kept.T).amax(1)
    pairs = 1.0 - gram[~torch.eye(k, dtype=torch.bool, device=gram.device)]
    mean = mean_pairwise_distance(features) if k > 1 else float("nan")
    chance = random_expectation(tokens.visual)
    return SelectionDiagnostics(
        kept=k,
        mean_distance=mean,
        distance_ratio=mean / chance if chance > 0.0 else float("nan"),
        min_distance=max(0.0, float(pairs.min())) if k > 1 else float("nan"),
        effective_rank=effective_rank(kept),
        log_det=float(torch.linalg.slogdet(torch.eye(k, dtype=gram.dtype, device=gram.device) + gram).logabsdet),
        coverage_error=float(nearest.clamp_min(0.0).mean()),
        coverage_worst=float(nearest.clamp_min(0.0).max()),
        duplicates=k - torch.unique(features + 0.0, dim=0).shape[0],  # + 0.0: a negative zero equals a positive one
        alignment=_alignment(tokens, features),
    )


def jaccard(first: Int[Tensor, " k"], second: Int[Tensor, " l"]) -> float:
    """Shared part of two sets of indices, |A and B| / |A or B|; 1 when both are empty.

    Examples:
        >>> jaccard(torch.tensor([0, 1, 2]), torch.tensor([2, 3]))
        0.25
    """
    a, b = set(first.tolist()), set(second.tolist())
    return len(a & b) / len(a | b) if a | b else 1.0


def overlap(names: Sequence[str], selections: Sequence[Sequence[Selection]]) -> Overlap:
    """Jaccard overlap of every two methods, mean over images.

    Args:
        names: one per method.
        selections: per method, its selection on every image, all methods on the same images.

    Raises:
        ValueError: when numbers do not fit.
    """
    counts = {len(own) for own in selections}
    if len(names) != len(selections) or len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"overlap: need one name per method and the same images for each, got {len(names)} names and "
            f"{[len(own) for own in selections]} selections"
        )
    matrix = np.array(
        [
            [np.mean([jaccard(a.indices, b.indices) for a, b in zip(one, two, strict=True)]) for two in selections]
            for one in selections
        ]
    )
    return Overlap(names=tuple(names), jaccard=matrix)


def _alignment(tokens: Tokens, features: Float[Tensor, "k d"]) -> float:
    if tokens.text is None or tokens.text.shape[0] == 0:
        return float("nan")
    scores = alignment_score(tokens.visual.double(), tokens.text.double())
    spread = float(scores.std(correction=0))
    kept = alignment_score(features.double(), tokens.text.double())
    return float(kept.mean() - scores.mean()) / spread if spread > 0.0 else 0.0
