"""TrimTokenator: both stages together."""

from tokenprune.alignment import MIAlignment
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import strategy
from tokenprune.core.strategy import Stage, Staged
from tokenprune.core.tokens import Tokens
from tokenprune.repmax import GreedyRepMax


@strategy("trim_tokenator", paper="TrimTokenator, arXiv 2509.00320")
class TrimTokenator(Staged):
    """Keep what is best aligned with the text, then greedily what is diverse (TrimTokenator, arXiv 2509.00320).

    `TrimTokenator(keep, align=a)` is `MIAlignment(a) >> GreedyRepMax(keep)`, and equal to that pipeline.

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

    keep: Keep
    align: Keep = 0.8

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The alignment stage and the diversity stage."""
        return (MIAlignment(self.align), GreedyRepMax(self.keep))

    def stages_for(self, tokens: Tokens) -> tuple[Stage, ...]:
        """Let the first stage leave as many tokens as the budget asks for."""
        first, second = self.stages
        wanted = keep_count(self.keep, tokens.original)
        return (MIAlignment(wanted) if keep_count(self.align, tokens.original) < wanted else first, second)
