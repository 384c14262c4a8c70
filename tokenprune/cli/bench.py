"""`tokenprune bench`: what choosing costs, and what pruning saves, as wall clock on this machine."""

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Measure speed and memory. `selection` times the choosing alone, against a plain loop and against the matrix product that
it needs; `model` runs a whole model with random weights, dense against pruned, stage by stage. Speed does not depend on
what weights mean, so nothing is downloaded.
"""
_EPILOG = """\
examples:   tokenprune bench selection
            tokenprune bench model --config tiny
            tokenprune bench model --config llava-1.5-7b --random-weights --device cuda --dry-run
            tokenprune bench model --config llava-1.5-7b --random-weights --device cuda --static-cache --compile

Rows go into a CSV file as they are measured; a stopped run goes on where it was.
"""


def add_parser(subparsers: Any) -> None:  # noqa: ANN401
    """Add the subcommand."""
    from tokenprune.cli import bench_model, bench_selection

    parser = subparsers.add_parser(
        "bench",
        help="measure the speed of selection, and of a model dense against pruned",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for module in (bench_selection, bench_model):
        child = module.add_parser(what)
        _shared(child)
        child.set_defaults(bench=module.run)


def run(args: argparse.Namespace) -> int:
    """Run what was asked for."""
    return int(args.bench(args))


def _shared(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    machine.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="default: float32 on the CPU, else bfloat16",
    )
    machine.add_argument(
        "--peak-tflops",
        type=float,
        metavar="X",
        help="the device's peak, for bounds (default: data sheet or probe)",
    )
    machine.add_argument("--bandwidth-gbs", type=float, metavar="X", help="its memory bandwidth in GB/s, likewise")
    where = parser.add_argument_group("output")
    where.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where the CSV files go (default: runs)"
    )
    where.add_argument("--fresh", action="store_true", help="measure rows again that are there already")
