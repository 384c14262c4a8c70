"""A strategy whose tokens enter the model in the order in which they were picked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune.strategy import PruningStrategy
from tokenprune.tokens import Selection, Tokens


@dataclass(frozen=True, repr=False)
class PickOrder(PruningStrategy):
    """Keep what another strategy keeps, in its pick order instead of in raster order; for ablations.

    With original positions every token takes its position along; with compact ones the place in the order becomes its
    position.

    Args:
        inner: a strategy that acts before the language model, makes no new tokens and has a pick order.

    Raises:
        ValueError: when it acts elsewhere or makes new tokens; while selecting, when it has no pick order.

    Examples:
        >>> import torch
        >>> from tokenprune import GreedyRepMax
        >>> tokens = Tokens(torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.2]]))
        >>> PickOrder(GreedyRepMax(keep=2)).select(tokens).indices
        tensor([2, 1])
    """

    name: ClassVar[str] = "pick_order"
    summary: ClassVar[str] = "another strategy's tokens in its pick order"

    inner: PruningStrategy

    def __post_init__(self) -> None:
        if self.inner.site == "decoder" or self.inner.merges:
            raise ValueError(
                f"PickOrder: {self.inner!r} acts inside the language model or makes new tokens, where there is no "
                "order to feed; choose one that keeps tokens as they are before it"
            )
        for fact in ("needs", "uses", "site", "positions", "deterministic", "whole_raster"):
            object.__setattr__(self, fact, getattr(self.inner, fact))
        object.__setattr__(self, "ascending", False)

    def requested(self, tokens: Tokens) -> int | None:
        """That of the inner strategy."""
        return self.inner.requested(tokens)

    def _select(self, tokens: Tokens) -> Selection:
        return self._ordered(self.inner.select(tokens))

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        return [self._ordered(selection) for selection in self.inner.select_batch(batch)]

    def _ordered(self, selection: Selection) -> Selection:
        if selection.order is None:
            raise ValueError(f"PickOrder: {self.inner!r} picks all tokens at once; choose one that picks one by one")
        return replace(selection, indices=selection.order)

    def __repr__(self) -> str:
        return f"pick_order({self.inner!r})"
