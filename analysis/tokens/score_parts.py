"""The alignment score taken apart: what comes from the norm of a visual token, what from the text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreParts:
    r"""The default alignment score of one image as a sum of three parts: $\alpha_i = norm_i + text_i + constant$.

    Attributes:
        norm: float64 (n,), $-\lVert v_i\rVert^2$: does not know the text.
        text: float64 (n,), $2\,v_i\cdot\bar t$: all that the text can say.
        constant: $-\frac1m\sum_j\lVert t_j\rVert^2$, equal for all visual tokens.
    """

    norm: Float[Tensor, " n"]
    text: Float[Tensor, " n"]
    constant: float

    @property
    def total(self) -> Float[Tensor, " n"]:
        """The score."""
        return self.norm + self.text + self.constant

    @property
    def variance_shares(self) -> tuple[float, float]:
        r"""Shares of the score's variance: (norm, text), $Cov(part, score)/Var(score)$.

        They sum to 1. One of them exceeds 1 when the parts work against each other. NaN when all scores are equal.
        """
        norm, text = self.norm - self.norm.mean(), self.text - self.text.mean()
        total = norm + text
        variance = float(total @ total)
        if variance == 0.0:
            return float("nan"), float("nan")
        return float(norm @ total) / variance, float(text @ total) / variance

    def plot(self, ax: "Axes", *, objects: Bool[Tensor, " n"] | None = None, dropped: float = 0.0) -> "Axes":
        """Score against the norm part; a straight line means that the norm alone decides.

        Args:
            ax: where to draw.
            objects: True for tokens on an annotated object, drawn in another colour.
            dropped: share of the tokens that stage 1 drops; draws the threshold. 0 draws none.
        """
        x, y = self.norm.cpu().numpy(), self.total.cpu().numpy()
        marked = None if objects is None else objects.cpu().numpy()
        if marked is None:
            ax.scatter(x, y, s=9, color="#0072B2", linewidths=0)
        else:
            ax.scatter(x[~marked], y[~marked], s=9, color="#56B4E9", linewidths=0, label="background tokens")
            ax.scatter(x[marked], y[marked], s=11, color="#D55E00", linewidths=0, label="object tokens")
        if dropped > 0.0:
            threshold = float(torch.quantile(self.total.cpu(), dropped))
            ax.axhline(threshold, color="#555555", linestyle="--", linewidth=1, label="dropped below this line")
        ax.set_xlabel(r"norm part $-\|v\|^2$")
        ax.set_ylabel(r"alignment score $\alpha$")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
        return ax


def split_score(visual: Float[Tensor, "n d"], text: Float[Tensor, "m d"]) -> ScoreParts:
    r"""Take the default alignment score apart, so that one sees what the text contributes.

    $-\frac1m\sum_j\lVert v_i-t_j\rVert^2 = -\lVert v_i\rVert^2 + 2v_i\cdot\bar t - \frac1m\sum_j\lVert t_j\rVert^2$

    Where visual norms are much larger than those of the text, or simply spread more than the text part does, ranking by
    the score is dropping the largest norms, whatever the question (a hypothesis about LLaVA-like models that this
    measures).

    Args:
        visual: (n, d), projector output.
        text: (m, d), input embeddings of the text tokens, m >= 1.

    Raises:
        ValueError: when the text has no rows or another width, or a tensor holds NaN or infinity.

    Examples:
        >>> parts = split_score(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
        >>> parts.norm.tolist(), parts.text.tolist(), parts.constant
        ([-1.0, -4.0], [2.0, 4.0], -2.0)
    """
    if text.ndim != 2 or text.shape[0] == 0 or text.shape[1] != visual.shape[-1]:
        raise ValueError(
            f"split_score: text must have at least one row of width {visual.shape[-1]}, got {tuple(text.shape)}; give "
            "the input embeddings of the prompt's text tokens"
        )
    v, t = visual.detach().double(), text.detach().double()
    for name, value in (("visual", v), ("text", t)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"split_score: {name} holds NaN or infinity; look for the layer that made it")
    return ScoreParts(norm=-v.square().sum(-1), text=2.0 * (v @ t.mean(0)), constant=-float(t.square().sum(-1).mean()))
