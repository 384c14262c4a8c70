"""A progress bar with the remaining time."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

_FORMAT = "{desc:<26.26} {percentage:3.0f}% |{bar}| {elapsed} passed, {remaining} left"


class Bar:
    """Progress on standard error; implements `tokenprune.evaluate.comparison.Progress`."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, total: float, done: float) -> None:
        """Show the bar."""
        from tqdm import tqdm

        # A log file gets a line now and then, a terminal a live bar.
        pause = 0.2 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(total=total, initial=done, bar_format=_FORMAT, mininterval=pause, smoothing=0.05, leave=False)

    def advance(self, amount: float, what: str) -> None:
        """Move it."""
        if self._bar is not None:
            self._bar.set_description_str(what, refresh=False)
            # Sums of fractions may pass the total by a rounding error, at which tqdm would warn.
            self._bar.update(max(0.0, min(amount, self._bar.total - self._bar.n)))

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if self._bar is not None:
            self._bar.close()
