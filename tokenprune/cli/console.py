"""The terminal: how wide it is, what is printed there, and a progress bar with the remaining time."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from tokenprune.evaluate.report import Report

_FORMAT = "{desc:<26.26} {percentage:3.0f}% |{bar}| {elapsed} passed, {remaining} left"


class Bar:
    """Progress on standard error; implements `tokenprune.evaluate.run_loop.Progress`."""

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


def bar(things: Iterable[Any], what: str = "batches") -> Iterable[Any]:
    """Give the things one by one, with a progress bar."""
    from tqdm import tqdm

    yield from tqdm(things, desc=what, unit="", leave=False, mininterval=0.5, disable=None)


def make_console(*, least: int = 110) -> "Console":
    """Make a console; output that goes to a file or a pipe is not cut to 80 columns."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=max(console.width, least))
    return console


def print_report(report: "Report", folder: Path) -> None:
    """Print tables and findings, then the files of the folder."""
    console = make_console(least=130)
    console.print(report)
    console.print(f"\n{folder}", markup=False, style="bold")
    for file in sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        console.print(f"  {file}", markup=False)


def print_json(report: "Report", folder: Path) -> None:
    """Print the report as JSON, with the folder that it was written to."""
    from tokenprune.evaluate.report import as_text

    print(as_text(report, folder=str(folder)))
