"""Named pipelines."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tokenprune.alignment import MIAlignment
from tokenprune.budget import Keep, check_keep, keep_count
from tokenprune.pipeline import StagedStrategy, run_stages
from tokenprune.repmax import GreedyRepMax
from tokenprune.strategy import PruningStrategy, set_keep
from tokenprune.tokens import Selection, Tokens


@dataclass(frozen=True, repr=False, eq=False)
class TrimTokenator(StagedStrategy):
    """TrimTokenator (arXiv 2509.00320): `MIAlignment(align) >> GreedyRepMax(keep)`, and equal to that pipeline.

    Deviations: 0.8 is the default of a third-party re-implementation; whether the paper uses it is open. When `keep`
    asks for more tokens than `align` leaves, the first stage lets that many through, so that the budget is met.

    Args:
        keep: tokens (int) or share of the image's original tokens (float) that survive both stages.
        align: tokens or share that survive the alignment stage.

    Examples:
        >>> TrimTokenator(64) == MIAlignment(0.8) >> GreedyRepMax(64)
        True
        >>> TrimTokenator(64)
        trim_tokenator(keep=64)
    """

    name: ClassVar[str] = "trim_tokenator"
    paper: ClassVar[str] = "TrimTokenator, arXiv 2509.00320"
    summary: ClassVar[str] = "text alignment first, then greedy max-sum diversity"

    keep: Keep
    _: KW_ONLY
    align: Keep = 0.8

    def __post_init__(self) -> None:
        set_keep(self)
        object.__setattr__(self, "align", check_keep(self.align, owner="TrimTokenator", parameter="align"))
        self._derive_facts()

    @property
    def stages(self) -> tuple[PruningStrategy, ...]:
        """The alignment stage and the diversity stage."""
        return (MIAlignment(self.align), GreedyRepMax(self.keep))

    def requested(self, tokens: Tokens) -> int | None:
        """The final budget."""
        return keep_count(self.keep, tokens.original)

    def _select(self, tokens: Tokens) -> Selection:
        return self._select_batch([tokens])[0]

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        first, second = self.stages
        # Where the budget asks for more than the first stage leaves, that stage lets as many through.
        groups: dict[PruningStrategy, list[int]] = {}
        for i, tokens in enumerate(batch):
            wanted = keep_count(self.keep, tokens.original)
            wide = keep_count(self.align, tokens.original) < wanted
            groups.setdefault(MIAlignment(wanted) if wide else first, []).append(i)
        results: list[Selection | None] = [None] * len(batch)
        for stage, members in groups.items():
            for i, selection in zip(members, run_stages((stage, second), [batch[i] for i in members]), strict=True):
                results[i] = selection
        return [selection for selection in results if selection is not None]
