"""`tokenprune analyze`: why a method works, or does not, in tables and figures."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.cli.options import add_model_options, load_model, make_console

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

    from tokenprune.analysis import AnalysedImage
    from tokenprune.cli.outcome import Outcome
    from tokenprune.core.strategy import PruningStrategy
    from tokenprune.evaluate.loading import LoadedModel
    from tokenprune.evaluate.samples import Sample

ANALYSES = {
    "ablation": "TrimTokenator part by part: each left out, swapped or replaced, at one budget",
    "alignment": "does stage 1 read the question, or does it drop the largest norms?",
    "cases": "what each method kept and what the model then said, word by word, on the most changed samples",
    "damage": "flips, probabilities, calibration, hard and easy samples, a second question",
    "diagnostics": "every method's kept set under every objective, and how much the sets share",
    "gap": "does a better value of the RepMax objective buy accuracy? sets from random to proved optimum",
    "information": "mutual information estimated on its own, against the alignment score",
    "redundancy": "visual against text tokens: cosines, near-duplicates, rank",
    "spatial": "where kept tokens stand: heat map, row and column bias, recall of objects",
}

_ANSWERED = ("ablation", "cases", "damage", "gap")
"""Analyses that judge answers."""

_EPILOG = """\
examples:   tokenprune analyze alignment
            tokenprune analyze diagnostics --strategy "greedy_repmax(keep=64)" --strategy "divprune(keep=64)"
            tokenprune analyze damage --strategy "trim_tokenator(keep=64)" --count 100
            tokenprune analyze redundancy --layers
            tokenprune analyze redundancy --model llava-hf/llava-1.5-7b-hf --data my_questions --count 100
"""


def add_parser(subparsers: Any) -> None:  # noqa: ANN401
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "analyze",
        help="why a method works: " + ", ".join(ANALYSES),
        description="Analyse visual tokens and selections; without options on the bundled model and its scenes.\n\n"
        + "\n".join(f"{name:12} {what}" for name, what in ANALYSES.items()),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=tuple(ANALYSES), metavar="WHAT", help=" | ".join(ANALYSES))
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="TEXT",
        help='a strategy with its budget, e.g. "greedy_repmax(keep=0.111)"; repeatable. For alignment: mi_alignment '
        "with options (default: a few of each kind)",
    )
    parser.add_argument("--data", metavar="FOLDER", help="a data set as for compare (default: the bundled scenes)")
    parser.add_argument(
        "--allow-outside", action="store_true", help="--data may name images outside of its folder (default: refused)"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="number of images (default: 60 scenes, or all of --data)"
    )
    parser.add_argument(
        "--tau", type=float, default=0.9, metavar="X", help="redundancy: cosine of near-duplicates (default 0.9)"
    )
    parser.add_argument(
        "--letterbox",
        action="store_true",
        help="spatial: pad pictures to squares as LLaVA-1.5 does (bundled scenes: cut to 5:8 first) and count tokens "
        "kept in the padding",
    )
    parser.add_argument(
        "--layers", action="store_true", help="redundancy: in front of every layer of the language model"
    )
    parser.add_argument(
        "--sample",
        action="append",
        metavar="ID",
        help="cases: a sample to show; repeatable (else the most changed)",
    )
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="cases: how many are shown (default 8)")
    parser.add_argument(
        "--keep",
        action="append",
        metavar="BUDGET",
        help="ablation, gap: 64 tokens, 0.111 or 11.1%% (default 11.1%%; for gap, "
        "where it may be repeated, also 22.2%%)",
    )
    parser.add_argument(
        "--exact-seconds",
        type=float,
        default=0.5,
        metavar="S",
        help="ablation, gap: seconds per image for the exact solver (default 0.5)",
    )
    parser.add_argument("--fresh", action="store_true", help="ablation: do finished cells again")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="ablation, damage, gap: random draws (default 3)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions per batch (default 16)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=16, metavar="N", help="length limit of an answer (default 16)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="FOLDER", help="parent of the output folder (default: runs)"
    )
    add_model_options(parser, answers=False)


def run(args: argparse.Namespace) -> int:
    """Analyse, print the table, write CSV, PNG and run.json."""
    from tokenprune.core.text import parse
    from tokenprune.evaluate.extras import need
    from tokenprune.evaluate.figures import STYLE
    from tokenprune.evaluate.lock import locked
    from tokenprune.evaluate.methods import parse_budget

    for name in ("count", "cases", "seeds", "batch_size", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    args.keep = [parse_budget(text) for text in args.keep or (("22.2%", "11.1%") if args.what == "gap" else ("11.1%",))]
    if not 0.0 <= args.exact_seconds < 3600.0:
        raise ValueError(f"--exact-seconds must be 0 (leave it out) to 3600, got {args.exact_seconds}")
    if not -1.0 < args.tau < 1.0:
        raise ValueError(f"--tau must lie between -1 and 1, got {args.tau}")
    if args.layers and args.what != "redundancy":
        raise ValueError(f"--layers belongs to redundancy, not to {args.what}; leave it out")
    if args.letterbox and args.what != "spatial":
        raise ValueError(f"--letterbox belongs to spatial, not to {args.what}; leave it out")
    if args.strategy and args.what == "redundancy":
        raise ValueError("--strategy: redundancy looks at tokens before any strategy; leave it out")
    for package in ("matplotlib", "statsmodels", "jinja2"):  # before any work
        need(package)
    strategies = [parse(text) for text in args.strategy or ()]
    samples = _own_samples(args)
    args.out.expanduser().mkdir(parents=True, exist_ok=True)  # before any work
    loaded = load_model(args)
    option = "-layers" if args.layers else "-letterbox" if args.letterbox else ""
    own = args.out.expanduser() / f"analyze-{args.what}{option}"
    with ExitStack() as stack:
        if args.what != "ablation":  # which has a run folder, named after its configuration
            stack.enter_context(locked(own))
        with need("matplotlib").rc_context(STYLE):
            outcome = _outcome(args, loaded, strategies, samples)
        folder = outcome.folder or own
        if outcome.folder is not None:
            stack.enter_context(locked(folder, inside=True))
        _write(folder, args, loaded, outcome)
    _print(folder, outcome)
    return 0 if outcome.complete else 130


def _own_samples(args: argparse.Namespace) -> "list[Sample] | None":
    """The samples of --data, checked; None for the bundled scenes."""
    if args.data is None:
        return None
    from tokenprune.evaluate.folder import read_folder

    return read_folder(Path(args.data).expanduser(), count=args.count, allow_outside=args.allow_outside)


def _outcome(
    args: argparse.Namespace,
    loaded: "LoadedModel",
    strategies: "Sequence[PruningStrategy]",
    samples: "Sequence[Sample] | None",
) -> "Outcome":
    from tokenprune.cli.ablation import ablation
    from tokenprune.cli.analyses import RUN, default_strategies
    from tokenprune.cli.answer_analyses import damage, read_request
    from tokenprune.cli.case_studies import cases
    from tokenprune.cli.gap_accuracy import gap
    from tokenprune.cli.layer_analysis import layers

    # By name: what lets the model run, and the number of bundled scenes unless told otherwise.
    on_model = {
        "ablation": (ablation, 200),
        "cases": (cases, 40),
        "damage": (damage, 200),
        "gap": (gap, 100),
        "redundancy": (layers, 60),
    }
    if args.layers or (args.what in on_model and args.what != "redundancy"):
        analyse, count = on_model[args.what]
        return analyse(read_request(args, loaded, strategies, count, samples))
    used = strategies or default_strategies(args.what)
    return RUN[args.what](_watched(_images(args, loaded, used, samples)), used, args.tau)


def _images(
    args: argparse.Namespace,
    loaded: "LoadedModel",
    strategies: "Sequence[PruningStrategy]",
    samples: "Sequence[Sample] | None",
) -> "Iterator[AnalysedImage]":
    from tokenprune.analysis import bundled_images, stream_images
    from tokenprune.analysis.images import DEFAULT_COUNT
    from tokenprune.models import adapter_for
    from tokenprune.models.plan import tower_part
    from tokenprune.models.select import fit_strategy

    adapter = adapter_for(loaded.model)
    adapter.clip = loaded.clip
    for strategy in strategies:
        fit_strategy(strategy, adapter)
        if tower_part(strategy) is not None:
            raise ValueError(
                f"--strategy: {strategy!r} acts inside the vision tower, so that its tokens are not those of the other "
                "strategies; analyses look at one set of tokens, leave it out"
            )
    want = {signal for strategy in strategies for signal in strategy.needs}
    swap = args.what in ("alignment", "information")
    fallback = 30 if args.what == "information" else DEFAULT_COUNT  # its estimates take a second per image
    if samples is None:
        return bundled_images(loaded, args.count or fallback, swap=swap, want=want, letterbox=args.letterbox)
    questions = list(dict.fromkeys(sample.question for sample in samples))
    others = {}
    if swap and len(questions) > 1:  # the next different question of the data set takes the place of the own one
        following = dict(zip(questions, [*questions[1:], questions[0]], strict=True))
        others = {sample.id: [following[sample.question]] for sample in samples}
    return stream_images(loaded, samples, other_questions=others, want=want, letterbox=args.letterbox)


def _watched(images: "Iterator[AnalysedImage]") -> "Iterator[AnalysedImage]":
    from tqdm import tqdm

    yield from tqdm(images, desc="images", unit="", leave=False, mininterval=0.5, disable=None)


def _write(folder: Path, args: argparse.Namespace, loaded: "LoadedModel", outcome: "Outcome") -> None:
    from tokenprune.cli.outcome import write_outcome
    from tokenprune.evaluate.environment import git_state, package_versions
    from tokenprune.evaluate.manifest import shell_line
    from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION
    from tokenprune.evaluate.run_folder import write_atomically

    facts = {
        "analysis": args.what,
        "model": loaded.name,
        "weights": loaded.digest,
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "device": loaded.device,
        "data": args.data or "bundled scenes",
        "metric": f"{METRIC}, version {METRIC_VERSION}" if args.what in _ANSWERED else None,
        "images": outcome.images,
        "strategies": list(outcome.strategies),
        "letterbox": args.letterbox if args.what == "spatial" else None,
        "tau": args.tau if args.what == "redundancy" else None,
        **outcome.facts,
        "versions": package_versions(),
        "git": git_state(),
    }
    command = shell_line(args.arguments)
    write_outcome(folder, outcome, kind=f"analyze {args.what}", command=command, configuration=facts)
    facts["findings"] = list(outcome.findings)
    write_atomically(folder / "run.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def _print(folder: Path, outcome: "Outcome") -> None:
    console = make_console(least=130)
    for title, headers, rows in outcome.tables:
        for table in _tables(title, headers, rows, console):
            console.print(table, markup=False)
            console.print()
    for sentence in outcome.findings:
        console.print(sentence, markup=False)
    console.print(f"\n{folder}", markup=False, style="bold")
    for file in sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        console.print(f"  {file}", markup=False)


def _tables(
    title: str, headers: "Sequence[str]", rows: "Sequence[Sequence[str]]", console: "Console"
) -> "Iterator[Table]":
    """The table, or where it is too wide for the console two or more with some of the columns each."""
    rest = list(range(1, len(headers)))
    while rest:
        fits = len(rest)
        while fits > 1 and _width(_table(title, headers, rows, rest[:fits]), console) > console.width:
            fits -= 1
        yield _table(title, headers, rows, rest[:fits])
        rest = rest[fits:]


def _table(title: str, headers: "Sequence[str]", rows: "Sequence[Sequence[str]]", columns: "Sequence[int]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left")
    table.add_column(headers[0], overflow="fold", max_width=44)
    for column in columns:
        table.add_column(headers[column], justify="right", overflow="fold")
    for row in rows:
        table.add_row(row[0], *(row[column] for column in columns))
    return table


def _width(table: "Table", console: "Console") -> int:
    return console.measure(table, options=console.options.update(max_width=1000)).maximum
