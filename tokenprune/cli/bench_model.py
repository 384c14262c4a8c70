"""`tokenprune bench model`: a model with random weights, dense against pruned."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenprune.cli.bench_common import bounds, new_table, place
from tokenprune.cli.options import make_console

if TYPE_CHECKING:
    from tokenprune.core.strategy import PruningStrategy
    from tokenprune.evaluate.cost.model_bench import ModelBench, Setup
    from tokenprune.evaluate.cost.results_file import ResultsFile

DEFAULT_STRATEGY = "trim_tokenator"
DEFAULT_BATCHES = (1, 8, 32)
DEFAULT_KEEP = ("192", "128", "64")
SWEEP = (16, 32, 64, 128, 256, 576, 1152, 2880)
_KEYS = ("config", "device", "dtype", "attention", "threads", "text_tokens", "new_tokens", "cache", "compiler")
_MODEL_KEYS = (*_KEYS, "batch", "strategy")
_SWEEP_KEYS = (*_KEYS, "strategy", "visual_tokens")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:  # noqa: ANN401
    """Add the subcommand; the options of all benchmarks are added by the caller."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "model",
        help="time a whole model, dense against pruned",
        description="Build a model with random weights and time vision, selection, prefill and decoding, dense and "
        "pruned, with peak memory, keys and values held, bounds, and from where on pruning pays.",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--config",
        default="tiny",
        metavar="NAME",
        help="tiny (default), llava-1.5-7b, llava-next-7b, or a folder with a model's config.json",
    )
    what.add_argument(
        "--random-weights", action="store_true", help="weights are random in any case; the option says so in scripts"
    )
    what.add_argument(
        "--strategy",
        action="append",
        metavar="TEXT",
        help=f"a strategy without its budget; repeatable (default: {DEFAULT_STRATEGY})",
    )
    what.add_argument(
        "--keep",
        action="append",
        metavar="BUDGET",
        help=f"64 tokens, 0.111 or 11.1%%; repeatable (default: {', '.join(DEFAULT_KEEP)})",
    )
    what.add_argument(
        "--batch", action="append", type=int, metavar="N", help="prompts per batch; repeatable (default: 1, 8, 32)"
    )
    what.add_argument("--text-tokens", type=int, default=64, metavar="N", help="text tokens per prompt (default 64)")
    what.add_argument("--new-tokens", type=int, default=32, metavar="N", help="generated tokens (default 32)")
    what.add_argument("--attn", default="sdpa", metavar="BACKEND", help="attention backend (default sdpa)")
    what.add_argument("--repeats", type=int, default=5, metavar="N", help="runs that count (default 5)")
    what.add_argument("--warmup", type=int, default=1, metavar="N", help="runs before (default 1; 3 to compile)")
    what.add_argument("--static-cache", action="store_true", help="decode with a cache of fixed size")
    what.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="compile decoding (with --static-cache): inductor (default), aot_eager, eager",
    )
    what.add_argument("--no-sweep", action="store_true", help="leave out the break-even in visual tokens")
    what.add_argument("--dry-run", action="store_true", help="say what memory it would need, and stop")
    return parser


@dataclass(frozen=True, kw_only=True)
class _Plan:
    name: str
    setup: "Setup"
    batches: tuple[int, ...]
    strategies: "tuple[PruningStrategy, ...]"
    swept: "tuple[PruningStrategy, ...]"


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from tokenprune.evaluate.cost.configs import visual_tokens
    from tokenprune.evaluate.cost.estimate import check_fits, estimate_memory
    from tokenprune.evaluate.cost.model_bench import ModelBench
    from tokenprune.evaluate.cost.results_file import ResultsFile

    plan = _plan(args)
    setup = plan.setup
    estimate = estimate_memory(
        setup.config,
        batch=max(plan.batches),
        visual=visual_tokens(setup.config),
        text=setup.text,
        new=setup.new,
        dtype=setup.dtype,
    )
    if args.dry_run:
        _print_estimate(plan, estimate)
    check_fits(estimate, setup.device)
    if args.dry_run:
        return 0
    where = _where(plan)
    file = ResultsFile(args.out / "bench_model.csv", _MODEL_KEYS, fresh=args.fresh)
    sweep = ResultsFile(args.out / "bench_break_even.csv", _SWEEP_KEYS, fresh=args.fresh)
    roofline = bounds(args, setup.device, setup.dtype)
    stopped = False
    try:
        bench = ModelBench(setup, roofline)
        _measure(bench, plan, where, file)
        _sweep(bench, plan, where, sweep)
    except KeyboardInterrupt:
        stopped = True
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{setup.device} ran out of memory ({str(error).splitlines()[0]}); the rows measured so far are in "
            f"{file.path}; go on with a smaller --batch"
        ) from None
    files = (file, sweep) if plan.swept else (file,)
    for each in files:
        each.note(str(setup.device), roofline=vars(roofline))
    from tokenprune.cli.bench_report import print_break_even, print_model

    asked = [{**where, "batch": batch, "strategy": name} for batch in plan.batches for name in _names(plan)]
    print_model(file.keep(asked), where, roofline.source)
    points = [{**where, "strategy": repr(strategy), "visual_tokens": size} for strategy in plan.swept for size in SWEEP]
    print_break_even(sweep.keep(points))
    console = make_console()
    for each in files:
        console.print(f"{each.path}", markup=False, style="bold")
    return 130 if stopped else 0


def _plan(args: argparse.Namespace) -> _Plan:
    """What the options ask for, checked before any work."""
    from tokenprune.evaluate.cost.configs import find_config
    from tokenprune.evaluate.cost.model_bench import Setup
    from tokenprune.evaluate.methods import Method, parse_budget

    batches = tuple(args.batch or DEFAULT_BATCHES)
    if min(batches) < 1:
        raise ValueError(f"--batch must be 1 or more, got {min(batches)}")
    if args.compile and not args.static_cache:
        raise ValueError(
            "--compile needs --static-cache: a growing cache would be compiled anew at every step; give both"
        )
    methods = [Method(text) for text in args.strategy or (DEFAULT_STRATEGY,)]
    budgets = [parse_budget(text) for text in args.keep or DEFAULT_KEEP]
    device, dtype = place(args)
    setup = Setup(
        config=find_config(args.config),
        device=device,
        dtype=dtype,
        attention=args.attn,
        text=args.text_tokens,
        new=args.new_tokens,
        repeats=args.repeats,
        warmup=max(args.warmup, 3) if args.compile else args.warmup,
        static=args.static_cache,
        backend=args.compile,
    )
    return _Plan(
        name=args.config,
        setup=setup,
        batches=batches,
        strategies=tuple(method.strategy(keep=keep) for keep in budgets for method in methods),
        swept=() if args.no_sweep else tuple(method.strategy(keep=0.111) for method in methods),
    )


def _where(plan: _Plan) -> dict[str, Any]:
    import torch

    from tokenprune.evaluate.environment import device_name

    setup = plan.setup
    return {
        "config": plan.name,
        "device": device_name(str(setup.device)),
        "dtype": str(setup.dtype).removeprefix("torch."),
        "attention": setup.attention,
        "threads": torch.get_num_threads(),
        "text_tokens": setup.text,
        "new_tokens": setup.new,
        "cache": "static" if setup.static else "dynamic",
        "compiler": setup.backend or "",
    }


def _names(plan: _Plan) -> list[str]:
    from tokenprune.evaluate.cost.model_bench import label

    return [label(None), *(label(strategy) for strategy in plan.strategies)]


def _measure(bench: "ModelBench", plan: _Plan, where: dict[str, Any], file: "ResultsFile") -> None:
    """Every row that the file lacks; dense first, because the others are compared with it."""
    from tokenprune.evaluate.cost.model_bench import compared, label

    for batch in plan.batches:
        dense: dict[str, Any] | None = None
        for strategy in (None, *plan.strategies):
            here = {**where, "batch": batch, "strategy": label(strategy)}
            row = file.find(**here)
            if row is None:
                found = bench.measure(batch, strategy)
                row = file.add({**here, **found, **({} if dense is None else compared(found, dense))})
            dense = dense or row


def _sweep(bench: "ModelBench", plan: _Plan, where: dict[str, Any], file: "ResultsFile") -> None:
    for strategy in plan.swept:
        here = {**where, "strategy": repr(strategy)}
        missing = [size for size in SWEEP if file.find(**here, visual_tokens=size) is None]
        for row in bench.sweep(missing, strategy):
            file.add({**here, **row})


def _print_estimate(plan: _Plan, estimate: Any) -> None:  # noqa: ANN401
    from tokenprune.evaluate.cost.memory import free_memory

    table = new_table("Memory", "GiB")
    free = free_memory(plan.setup.device)
    parts: list[tuple[str, int | None]] = [
        ("weights", estimate.weights),
        ("keys and values", estimate.cache),
        ("work", estimate.work),
    ]
    for name, count in [
        *parts,
        ("needed, with a tenth on top", estimate.total),
        (f"free on {plan.setup.device}", free),
    ]:
        table.add_row(name, "unknown" if count is None else f"{count / 2**30:.2f}")
    console = make_console()
    setup = plan.setup
    console.print(
        f"{plan.name}, {str(setup.dtype).removeprefix('torch.')}, batch {max(plan.batches)}, {setup.new} new tokens",
        markup=False,
    )
    console.print(table)
