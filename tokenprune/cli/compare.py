"""`tokenprune compare`: the main job, strategies x budgets on a model and a data set."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.cli.options import add_model_options, load_model, make_console, position_policy
from tokenprune.cli.progress import Bar

if TYPE_CHECKING:
    from tokenprune.evaluate.comparison import Comparison
    from tokenprune.evaluate.samples import Sample
    from tokenprune.evaluate.settings import Settings

BUNDLED_DATA = "bundled scenes"

_DESCRIPTION = """\
Compare pruning strategies at several budgets: accuracy with paired intervals against Random, agreement with the
unpruned model, answers that flip, and time by stage. Without options: the bundled model on the bundled scenes.
The unpruned model and the controls random, uniform_grid and grid_pool are always there.
"""
_EPILOG = """\
data sets:  a folder with images and data.jsonl, one object per line:
              {"id": "1", "image": "cat.jpg", "question": "What is this?", "answer": "cat"}
            "images" and "answers" take lists, "kind" groups questions; image names are relative to the folder.

examples:   tokenprune compare
            tokenprune compare --strategy "trim_tokenator(align=0.7)" --strategy "random >> greedy_repmax" --keep 64
            tokenprune compare --model llava-hf/llava-1.5-7b-hf --data my_questions --batch-size 8
"""


def add_parser(subparsers: Any) -> None:  # noqa: ANN401
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="compare strategies at several budgets on a model and a data set",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--strategy",
        action="append",
        metavar="TEXT",
        help="a strategy without its budget, e.g. trim_tokenator(align=0.7); one that has none, e.g. vtw(layer=2), is "
        "a row of its own; repeatable (default: mi_alignment, greedy_repmax, trim_tokenator)",
    )
    what.add_argument(
        "--keep",
        action="append",
        metavar="BUDGET",
        help="64 tokens, 0.111 or 11.1%%; repeatable (default: 50%%, 33.3%%, 22.2%%, 11.1%%, 5.6%%)",
    )
    what.add_argument(
        "--budget",
        default="kept",
        choices=("kept", "layer-average"),
        help="what --keep means: tokens left behind the last stage (default), or the mean over decoder layers, for "
        "which strategies inside the decoder keep fewer in the end",
    )
    what.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="seeds 0..N-1 for strategies that draw at random (default 5)"
    )
    what.add_argument("--data", metavar="FOLDER", help="a data set (default: the bundled scenes)")
    what.add_argument(
        "--allow-outside", action="store_true", help="--data may name images outside of its folder (default: refused)"
    )
    what.add_argument(
        "--count", type=int, metavar="N", help="number of questions (default: 400 bundled ones, or all of --data)"
    )
    what.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions per batch (default 16)")
    add_model_options(parser)
    where = parser.add_argument_group("output")
    where.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where run folders are made (default: runs)"
    )
    where.add_argument("--kinds", action="store_true", help="also print accuracy by kind of question")
    where.add_argument("--fresh", action="store_true", help="do finished cells of the same configuration again")


def settings_of(args: argparse.Namespace) -> "Settings":
    """What the options ask for.

    Raises:
        ValueError: names the option, the value and the way out.
        TypeError: when an argument in a strategy's text does not exist.
    """
    from tokenprune.evaluate.methods import Method, parse_budget
    from tokenprune.evaluate.settings import Settings

    for name in ("seeds", "batch_size", "max_new_tokens", "count"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    chosen: dict[str, Any] = {}
    if args.strategy:
        chosen["methods"] = tuple(Method(text) for text in args.strategy)
    if args.keep:
        chosen["budgets"] = tuple(parse_budget(text) for text in args.keep)
    return Settings(
        seeds=tuple(range(args.seeds)),
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        positions=position_policy(args),
        budget=args.budget,
        **chosen,
    )


def samples_of(args: argparse.Namespace) -> "tuple[str, list[Sample]]":
    """Name and samples of the data set that the options ask for, checked."""
    from tokenprune.evaluate.folder import read_folder
    from tokenprune.evaluate.scenes import DEFAULT_COUNT, bundled_samples

    if args.data is None:
        return BUNDLED_DATA, bundled_samples(args.count or DEFAULT_COUNT)
    return args.data, read_folder(Path(args.data).expanduser(), count=args.count, allow_outside=args.allow_outside)


def run(args: argparse.Namespace) -> int:
    """Compare and print the table."""
    settings = settings_of(args)
    data, samples = samples_of(args)
    loaded = load_model(args)
    from tokenprune.evaluate.comparison import compare
    from tokenprune.evaluate.manifest import shell_line

    with Bar() as bar:
        comparison = compare(
            loaded,
            samples,
            settings,
            data=data,
            out=args.out,
            fresh=args.fresh,
            progress=bar,
            command=shell_line(args.arguments),
        )
    _print(comparison, kinds=args.kinds)
    if comparison.complete:
        return 0
    print(
        f"\nStopped: {comparison.finished} of {comparison.cells} cells are finished and kept; "
        "the same command goes on from here.",
        file=sys.stderr,
    )
    return 130


def _print(comparison: "Comparison", *, kinds: bool) -> None:
    from tokenprune.cli.tables import kind_table, legend, result_tables

    console = make_console(least=130)
    if comparison.rows:
        for table in result_tables(comparison.rows, console):
            console.print(table)
            console.print()
        if kinds:
            console.print(kind_table(comparison.rows))
            console.print()
        for text in (legend(comparison.rows), comparison.footer):
            console.print(text, style="dim", markup=False)
    busy = _busy(comparison)
    if busy:
        console.print(busy, style="yellow", markup=False)
    if comparison.reused:
        text = (
            f"{comparison.reused} of {comparison.cells} cells come from an earlier run of this configuration; "
            "--fresh does them again."
        )
        console.print(text, style="yellow", markup=False)
    console.print(f"\n{comparison.folder}", markup=False, style="bold")
    for file in (
        "report.html",
        "accuracy_vs_tokens.png",
        "kept_tokens.png",
        "results.csv",
        "samples.jsonl",
        "selections.parquet",
        "run.json",
    ):
        if (comparison.folder / file).is_file():
            console.print(f"  {file}", markup=False)


def _busy(comparison: "Comparison") -> str:
    """A warning when other programs wanted the processor too: wall clock then measures them as well."""
    loads = [session["load_average"] for session in comparison.report["sessions"] if session["cells_run"]]
    worst = max((load for load in loads if load is not None), default=0.0)
    cores = os.cpu_count() or 1  # not those of this process alone: the load is the whole machine's
    if worst <= cores + 0.5:
        return ""
    return f"The machine was busy (load {worst:.1f} on {cores} cores): do not trust these times."
