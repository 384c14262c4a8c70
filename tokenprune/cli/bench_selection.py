"""`tokenprune bench selection`: how long choosing takes, per image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from tokenprune.cli.bench_common import MachineOptions, bounds, new_table, number, place, print_rows
from tokenprune.cli.console import make_console
from tokenprune.cli.options import Texts

if TYPE_CHECKING:
    from tokenprune.core.strategy import PruningStrategy

DEFAULT_SIZES = ("576:64:4096:1", "576:192:4096:1", "576:64:4096:8", "2880:320:4096:1")
DEFAULT_STRATEGIES = ("mi_alignment", "greedy_repmax", "trim_tokenator", "divprune", "random")
_KEYS = ("device", "dtype", "threads", "n", "k", "d", "batch", "method")


@Parameter(name="*", group="What to measure")
@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Say what is measured.

    Attributes:
        size: tokens, kept tokens, width, images as N:K:D:BATCH; repeatable (default: 576:64:4096:1, 576:192:4096:1,
            576:64:4096:8, 2880:320:4096:1).
        strategy: a strategy without its budget that needs tokens and text alone; repeatable (default: mi_alignment,
            greedy_repmax, trim_tokenator, divprune, random).
        seconds: limit of one measurement.
    """

    size: Texts = ()
    strategy: Texts = ()
    seconds: float = 2.0


def run_selection(what: SelectionOptions, machine: MachineOptions, *, json: bool) -> int:
    """Measure and print."""
    import torch

    from tokenprune.core.places import InDecoder
    from tokenprune.core.signals import GRID, QUESTION, TEXT, WHOLE_IMAGE
    from tokenprune.evaluate.cost.results_file import ResultsFile
    from tokenprune.evaluate.cost.selection_bench import Size, selection_rows
    from tokenprune.evaluate.environment import device_name
    from tokenprune.evaluate.methods import Method

    sizes = [Size.parse(text) for text in what.size or DEFAULT_SIZES]
    methods = [Method(text) for text in what.strategy or DEFAULT_STRATEGIES]
    if not what.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {what.seconds}")
    device, dtype = place(machine)

    def strategies(keep: int) -> "list[PruningStrategy]":
        found = [method.strategy(keep=keep, seed=0) for method in methods]
        for strategy in found:
            noise = (TEXT, QUESTION, GRID, WHOLE_IMAGE)
            lacking = [signal for signal in strategy.needs if signal.required and signal not in noise]
            if lacking or isinstance(strategy.place, InDecoder):
                what = f"needs Tokens.{lacking[0]}" if lacking else "acts inside the decoder"
                raise ValueError(
                    f"--strategy {strategy!r} {what}, which noise cannot stand for; time it with bench model"
                )
        return found

    strategies(sizes[0].k)
    where = {
        "device": device_name(str(device)),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    file = ResultsFile(machine.out / "bench_selection.csv", _KEYS, fresh=machine.fresh)
    stopped = False
    roofline = bounds(machine, device, torch.float32)
    try:
        for row in selection_rows(
            sizes,
            strategies,
            device=device,
            dtype=dtype,
            roofline=roofline,
            seconds=what.seconds,
            skip=lambda size, name: file.find(**where, **vars(size), method=name) is not None,
        ):
            file.add({**where, **row})
    except KeyboardInterrupt:
        stopped = True
    file.note(str(device), roofline=vars(roofline))
    names = ["matrix product", "plain loop"]
    asked = [
        {**where, **vars(size), "method": name}
        for size in sizes
        for name in (*names, *(repr(strategy) for strategy in strategies(size.k)))
    ]
    rows = file.keep(asked)
    if json:
        print_rows({file.path: rows}, complete=not stopped)
        return 130 if stopped else 0
    _print(rows, where, roofline.source)
    make_console().print(f"\n{file.path}", markup=False, style="bold")
    return 130 if stopped else 0


def _print(rows: list[dict[str, Any]], where: dict[str, Any], source: str) -> None:
    console = make_console()
    table = new_table("n -> k, d, batch", "Method", "ms/image", "x product", "one by one", "product's floor")
    previous = None
    for row in rows:
        size = f"{row['n']} -> {row['k']}, {row['d']}, {row['batch']}"
        if previous not in (None, size):
            table.add_section()
        numbers = [number(row, name) for name in ("ms", "times_product", "single_ms", "product_floor_ms")]
        table.add_row("" if size == previous else size, row["method"], *numbers)
        previous = size
    console.print(table)
    text = (
        f"Median ms per image on {where['device']}, {where['dtype']} tokens, {where['threads']} threads. x product: in "
        "units of the matrix product of the same batch, measured; one by one: the same images in separate calls; "
        f"floor: least time for that product ({source})."
    )
    console.print(text, style="dim", markup=False)
