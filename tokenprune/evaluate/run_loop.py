"""Run the cells of a run folder that are not finished yet: what comparisons and ablations both do."""

from collections.abc import Callable, Sequence
from typing import Protocol

from tokenprune.evaluate.cells import Cell
from tokenprune.evaluate.run_folder import RunFolder
from tokenprune.evaluate.runner import Runner


class Progress(Protocol):
    """What is said about the progress of a run; both calls are cheap."""

    def start(self, total: float, done: float) -> None:
        """The work is `total` units, of which an earlier run has done `done`."""

    def advance(self, amount: float, what: str) -> None:
        """`amount` units of `what` are done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, total: float, done: float) -> None:
        """Say nothing."""

    def advance(self, amount: float, what: str) -> None:
        """Say nothing."""


def run_missing(runner: Runner, folder: RunFolder, cells: Sequence[Cell], progress: Progress) -> None:
    """Run every cell that the folder lacks, and write it when it is finished, as a whole.

    Args:
        runner: on the model and the data set.
        folder: is locked by this process.
        cells: all of them, dense first.
        progress: is given the progress, in batches of the dense model.
    """
    missing = [cell for cell in cells if not folder.has_cell(cell.id)]
    batches = -(-len(runner.samples) // runner.batch_size)
    per_cell = {cell.id: _work(cell) * batches for cell in cells}
    # Reading and encoding the pictures costs about as much as a dense cell.
    done = sum(per_cell.values()) - sum(per_cell[cell.id] for cell in missing)
    if not missing:
        return
    progress.start(sum(per_cell.values()) + batches, done)
    runner.prepare(_advance(progress, 1.0, "encoding pictures"))
    if not folder.read_json("vision.json"):
        folder.write_json("vision.json", {"batches": runner.vision_times})
    # The first call of a process allocates and chooses kernels.
    runner.run_batch(runner.batches[0], missing[0].strategy)
    for cell in missing:
        folder.write_cell(cell.id, runner.run(cell, _advance(progress, _work(cell), cell.method)))


def _advance(progress: Progress, amount: float, what: str) -> Callable[..., None]:
    return lambda *_: progress.advance(amount, what)


def _work(cell: Cell) -> float:
    """Cost of a cell's batch relative to dense, for the remaining time: text and overhead stay whatever is kept."""
    share = 1.0 if cell.keep is None else min(1.0, cell.keep if isinstance(cell.keep, float) else cell.keep / 576)
    return 0.2 + 0.8 * share
