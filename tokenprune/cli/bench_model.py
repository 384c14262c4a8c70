"""`tokenprune bench model`: a model with random weights, dense against pruned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tokenprune.cli.bench_common import MachineOptions, bounds, place, print_rows
from tokenprune.cli.console import make_console
from tokenprune.cli.options import Flag, Texts

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


@Parameter(name="*", group="What to measure")
@dataclass(frozen=True, kw_only=True)
class ModelBenchOptions:
    """Say what is measured.

    Attributes:
        config: tiny, llava-1.5-7b, llava-next-7b, or a folder with a model's config.json.
        random_weights: weights are random in any case; the option says so in scripts.
        strategy: a strategy without its budget; repeatable (default: trim_tokenator).
        keep: 64 tokens, 0.111 or 11.1%; repeatable (default: 192, 128, 64).
        batch: prompts per batch; repeatable (default: 1, 8, 32).
        text_tokens: text tokens per prompt.
        new_tokens: generated tokens.
        attn: attention backend.
        repeats: runs that count.
        warmup: runs before; at least 3 to compile.
        static_cache: decode with a cache of fixed size.
        compile: compile decoding with --static-cache; --compile alone is --compile inductor, others are aot_eager and
            eager.
        no_sweep: leave out the break-even in visual tokens.
    """

    config: str = "tiny"
    random_weights: Flag = False
    strategy: Texts = ()
    keep: Texts = ()
    batch: Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=False, show_default=False)] = ()
    text_tokens: int = 64
    new_tokens: int = 32
    attn: str = "sdpa"
    repeats: int = 5
    warmup: int = 1
    static_cache: Flag = False
    compile: str | None = None
    no_sweep: Flag = False


@dataclass(frozen=True, kw_only=True)
class _Plan:
    name: str
    setup: "Setup"
    batches: tuple[int, ...]
    strategies: "tuple[PruningStrategy, ...]"
    swept: "tuple[PruningStrategy, ...]"


def run_model(what: ModelBenchOptions, machine: MachineOptions, *, json: bool) -> int:
    """Measure and print."""
    import torch

    from tokenprune.evaluate.cost.model_bench import ModelBench
    from tokenprune.evaluate.cost.results_file import ResultsFile

    plan = _plan(what, machine)
    setup = plan.setup
    where = _where(plan)
    file = ResultsFile(machine.out / "bench_model.csv", _MODEL_KEYS, fresh=machine.fresh)
    sweep = ResultsFile(machine.out / "bench_break_even.csv", _SWEEP_KEYS, fresh=machine.fresh)
    roofline = bounds(machine, setup.device, setup.dtype)
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
    points = [{**where, "strategy": repr(strategy), "visual_tokens": size} for strategy in plan.swept for size in SWEEP]
    rows, swept = file.keep(asked), sweep.keep(points)
    if json:
        print_rows({file.path: rows, sweep.path: swept}, complete=not stopped)
        return 130 if stopped else 0
    print_model(rows, where, roofline.source)
    print_break_even(swept)
    console = make_console()
    for each in files:
        console.print(f"{each.path}", markup=False, style="bold")
    return 130 if stopped else 0


def _plan(what: ModelBenchOptions, machine: MachineOptions) -> _Plan:
    """What the options ask for, checked before any work."""
    from tokenprune.evaluate.cost.configs import find_config
    from tokenprune.evaluate.cost.model_bench import Setup
    from tokenprune.evaluate.methods import Method, parse_budget

    batches = tuple(what.batch or DEFAULT_BATCHES)
    if min(batches) < 1:
        raise ValueError(f"--batch must be 1 or more, got {min(batches)}")
    if what.compile and not what.static_cache:
        raise ValueError(
            "--compile needs --static-cache: a growing cache would be compiled anew at every step; give both"
        )
    methods = [Method(text) for text in what.strategy or (DEFAULT_STRATEGY,)]
    budgets = [parse_budget(text) for text in what.keep or DEFAULT_KEEP]
    device, dtype = place(machine)
    setup = Setup(
        config=find_config(what.config),
        device=device,
        dtype=dtype,
        attention=what.attn,
        text=what.text_tokens,
        new=what.new_tokens,
        repeats=what.repeats,
        warmup=max(what.warmup, 3) if what.compile else what.warmup,
        static=what.static_cache,
        backend=what.compile,
    )
    return _Plan(
        name=what.config,
        setup=setup,
        batches=batches,
        strategies=tuple(method.strategy(keep=keep) for keep in budgets for method in methods),
        swept=() if what.no_sweep else tuple(method.strategy(keep=0.111) for method in methods),
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
