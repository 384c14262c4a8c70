"""From which output length, and from how many visual tokens, pruning pays."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How one way of running a batch takes its time.

    Attributes:
        first: milliseconds until the first token; what does not depend on pruning (vision) may be left out of both.
        step: milliseconds per further token.
    """

    first: float
    step: float

    def until(self, tokens: int) -> float:
        """Milliseconds for an answer of so many tokens."""
        return self.first + (tokens - 1) * self.step


@dataclass(frozen=True)
class Lengths:
    """Output lengths at which pruning is faster.

    Attributes:
        first: the shortest; None when there is none.
        last: the longest; None without a limit.
    """

    first: int | None
    last: int | None = None

    def __str__(self) -> str:
        if self.first is None:
            return "never"
        return f"{self.first} or more" if self.last is None else f"{self.first} to {self.last}"


def output_lengths(dense: Pace, pruned: Pace) -> Lengths:
    """Answers of which lengths are faster with pruning, by pruned.until(t) < dense.until(t).

    Args:
        dense: without pruning.
        pruned: with it, selection included in `first`.

    Examples:
        >>> print(output_lengths(Pace(first=100, step=5), Pace(first=60, step=5)))
        1 or more
        >>> print(output_lengths(Pace(first=100, step=5), Pace(first=110, step=4)))
        12 or more
        >>> print(output_lengths(Pace(first=100, step=5), Pace(first=110, step=5)))
        never
        >>> print(output_lengths(Pace(first=100, step=4), Pace(first=96, step=5)))
        1 to 4
    """
    gain, per_step = dense.first - pruned.first, dense.step - pruned.step
    if per_step == 0:
        return Lengths(1 if gain > 0 else None)
    crossing = -gain / per_step  # further tokens at which both take equally long
    if per_step > 0:
        return Lengths(1 if crossing < 0 else int(crossing) + 2)
    if gain <= 0:
        return Lengths(None)
    further = int(crossing) if crossing != int(crossing) else int(crossing) - 1
    return Lengths(1, further + 1)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Pruning prompts of one size.

    Attributes:
        tokens: visual tokens before pruning.
        saved: milliseconds by which the prefill gets shorter.
        spent: milliseconds of selection.
    """

    tokens: int
    saved: float
    spent: float

    @property
    def gain(self) -> float:
        """Milliseconds won until the first token."""
        return self.saved - self.spent


def token_break_even(points: Sequence[Point]) -> float | None:
    """Visual tokens from which on pruning brings the first token sooner, at all measured sizes beyond.

    Between two measured sizes the gain is taken to be straight. When it is positive at all of them, the smallest size
    comes back: the break-even lies there or below. None when pruning does not pay at the largest size.

    Args:
        points: measured sizes, at least one.

    Raises:
        ValueError: when there is none.

    Examples:
        >>> token_break_even([Point(tokens=100, saved=1, spent=3), Point(tokens=300, saved=9, spent=3)])
        150.0
    """
    if not points:
        raise ValueError("token_break_even: points is empty; measure at least one prompt size")
    ordered = sorted(points, key=lambda point: point.tokens)
    if ordered[-1].gain <= 0:
        return None
    losing = [i for i, point in enumerate(ordered) if point.gain <= 0]
    if not losing:
        return float(ordered[0].tokens)
    below, above = ordered[losing[-1]], ordered[losing[-1] + 1]
    share = -below.gain / (above.gain - below.gain)
    return below.tokens + share * (above.tokens - below.tokens)
