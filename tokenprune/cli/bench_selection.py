"""`tokenprune bench selection`: how long choosing takes, per image."""

import argparse
from typing import TYPE_CHECKING, Any

from tokenprune.cli.bench_common import bounds, new_table, number, place
from tokenprune.cli.options import make_console

if TYPE_CHECKING:
    from tokenprune.core.strategy import PruningStrategy

DEFAULT_SIZES = ("576:64:4096:1", "576:192:4096:1", "576:64:4096:8", "2880:320:4096:1")
DEFAULT_STRATEGIES = ("mi_alignment", "greedy_repmax", "trim_tokenator", "divprune", "random")
_KEYS = ("device", "dtype", "threads", "n", "k", "d", "batch", "method")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:  # noqa: ANN401
    """Add the subcommand; the options of all benchmarks are added by the caller."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "selection",
        help="time the choosing alone",
        description="Time strategies on tokens of noise: all images in one call, one image after another, a plain "
        "loop, and the matrix product that pairwise methods need.",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--size",
        action="append",
        metavar="N:K:D:BATCH",
        help=f"tokens, kept tokens, width, images; repeatable (default: {', '.join(DEFAULT_SIZES)})",
    )
    what.add_argument(
        "--strategy",
        action="append",
        metavar="TEXT",
        help="a strategy without its budget that needs tokens and text alone; repeatable "
        f"(default: {', '.join(DEFAULT_STRATEGIES)})",
    )
    what.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="limit of one measurement (default 2)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from tokenprune.core.places import InDecoder
    from tokenprune.core.signals import GRID, QUESTION, TEXT, WHOLE_IMAGE
    from tokenprune.evaluate.cost.results_file import ResultsFile
    from tokenprune.evaluate.cost.selection_bench import Size, selection_rows
    from tokenprune.evaluate.environment import device_name
    from tokenprune.evaluate.methods import Method

    sizes = [Size.parse(text) for text in args.size or DEFAULT_SIZES]
    methods = [Method(text) for text in args.strategy or DEFAULT_STRATEGIES]
    if not args.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds}")
    device, dtype = place(args)

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
    file = ResultsFile(args.out / "bench_selection.csv", _KEYS, fresh=args.fresh)
    stopped = False
    roofline = bounds(args, device, torch.float32)
    try:
        for row in selection_rows(
            sizes,
            strategies,
            device=device,
            dtype=dtype,
            roofline=roofline,
            seconds=args.seconds,
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
    _print(file.keep(asked), where, roofline.source)
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
