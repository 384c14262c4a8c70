"""`Choice`, what a stage decides about one image, and `Selection`, a choice that has been checked and counted."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.kernels import top_k

_C = TypeVar("_C", bound="Choice")


@dataclass(frozen=True, eq=False, kw_only=True)
class StageCount:
    """One stage of a pipeline: `tokens_in` tokens came, `tokens_out` were kept, `made` new ones are appended.

    Attributes:
        stage: the stage's text.
        tokens_in: tokens that came.
        tokens_out: tokens kept of them.
        made: further tokens that the stage made.
    """

    stage: str
    tokens_in: int
    tokens_out: int
    made: int = 0


@dataclass(frozen=True, eq=False)
class Choice:
    """What a stage decides about one image; all that the author of a strategy returns. Immutable.

    Attributes:
        indices: int64 (k,), rows kept, unique; ascending unless the stage does not promise it. Empty only from stages
            that yield "nothing".
        order: int64 (k,), the same rows in the order in which they were picked, when the method has one.
        scores: float (n,), the score of every token, for methods that rank.
        features: float (k, d), only from stages that yield "merged": row j replaces the token `indices[j]`.
        extra: float (c, d), only from stages that yield "extended": hidden states of further tokens, which enter the
            decoder's sequence after the kept ones and belong to no single token of the image.
        sizes: float (k,), how many of the image's patches each kept token is made of, after a tower that merged them.
    """

    indices: Int[Tensor, " k"]
    order: Int[Tensor, " k"] | None = None
    scores: Float[Tensor, " n"] | None = None
    features: Float[Tensor, "k d"] | None = None
    extra: Float[Tensor, "c d"] | None = None
    sizes: Float[Tensor, " k"] | None = None

    @classmethod
    def top(cls, scores: Float[Tensor, " n"], count: int) -> "Choice":
        """Choose the `count` largest scores; ties go to the lowest index.

        Examples:
            >>> Choice.top(torch.tensor([1.0, 3.0, 3.0]), 1).indices
            tensor([1])
        """
        indices, order = top_k(scores, count)
        return cls(indices, order=order, scores=scores)

    @classmethod
    def picked(cls, order: Int[Tensor, " k"]) -> "Choice":
        """Choose rows that were picked one by one.

        Examples:
            >>> Choice.picked(torch.tensor([2, 0])).indices
            tensor([0, 2])
        """
        return cls(order.sort().values, order=order)

    def detached(self: _C, *, notes_only: bool = False) -> _C:
        """Return the same choice as plain numbers; itself when no gradient flows through it anyway.

        Args:
            notes_only: leave `features` and `extra` as they are.
        """
        names = ("scores", "sizes") if notes_only else ("features", "extra", "scores", "sizes")
        values = {name: getattr(self, name) for name in names}
        found = {k: value.detach() for k, value in values.items() if isinstance(value, Tensor) and value.requires_grad}
        return replace(self, **found) if found else self

    @classmethod
    def everything(cls, visual: Float[Tensor, "n d"], *, merges: bool = False) -> "Choice":
        """Choose every row; with `merges`, for a stage that yields merged tokens, each as it is."""
        return cls(torch.arange(visual.shape[0], device=visual.device), features=visual if merges else None)


@dataclass(frozen=True, eq=False)
class Selection(Choice):
    """What `select` gives back: a checked choice and its counts. Immutable.

    In a pipeline `indices` always refer to the original image.

    Attributes:
        total: number of tokens selected from.
        requested: number of tokens asked for; None for methods that find the number themselves. Larger than `kept`
            when more was asked for than there was: then everything is kept.
        stages: one entry per stage for a pipeline.
    """

    total: int = field(kw_only=True)
    requested: int | None = field(kw_only=True, default=None)
    stages: tuple[StageCount, ...] = field(kw_only=True, default=())

    @classmethod
    def of(cls, choice: Choice, *, total: int, requested: int | None) -> "Selection":
        """Count a choice. Many are counted, so this is faster than calling the class."""
        made = object.__new__(cls)
        made.__dict__.update(vars(choice), total=total, requested=requested)
        made.__dict__.setdefault("stages", ())
        return made

    @property
    def kept(self) -> int:
        """Number of tokens kept."""
        return self.indices.shape[0]

    @property
    def clamped(self) -> bool:
        """True when more tokens were asked for than there were."""
        return self.requested is not None and self.requested > self.total
