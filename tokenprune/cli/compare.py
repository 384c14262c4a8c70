"""`tokenprune compare`: the main job, strategies x budgets on a model and a data set."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from tokenprune.cli.console import Bar, make_console, print_json
from tokenprune.cli.options import (
    BUNDLED_DATA,
    AnswerOptions,
    DataOptions,
    Flag,
    JsonFlag,
    ModelOptions,
    Out,
    Texts,
    check_counts,
    command_line,
    load_model,
    position_policy,
    read_samples,
)

if TYPE_CHECKING:
    from tokenprune.evaluate.comparison import Comparison
    from tokenprune.evaluate.samples import Sample
    from tokenprune.evaluate.settings import Settings

_EPILOGUE = """\
data sets: a folder with images and data.jsonl, one object per line:
  {"id": "1", "image": "cat.jpg", "question": "What is this?", "answer": "cat"}
"images" and "answers" take lists, "kind" groups questions; image names are relative to the folder.

examples:
  tokenprune compare
  tokenprune compare --strategy "trim_tokenator(align=0.7)" --strategy "random >> greedy_repmax" --keep 64
  tokenprune compare --model llava-hf/llava-1.5-7b-hf --data my_questions --batch-size 8
"""
app = App(name="compare", help_epilogue=_EPILOGUE)


@Parameter(name="*", group="What to compare")
@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Say what is compared.

    Attributes:
        strategy: a strategy without its budget, e.g. trim_tokenator(align=0.7); one that has none, e.g. vtw(layer=2),
            has its own row; repeatable (default: mi_alignment, greedy_repmax, trim_tokenator).
        keep: 64 tokens, 0.111 or 11.1%; repeatable (default: 50%, 33.3%, 22.2%, 11.1%, 5.6%).
        budget: what --keep means: the tokens after the last stage, or the mean over decoder layers, for which
            strategies inside the decoder keep fewer in the end.
        seeds: seeds 0..N-1 for strategies that draw at random.
        batch_size: questions per batch.
        fresh: do finished cells of the same configuration again.
    """

    strategy: Texts = ()
    keep: Texts = ()
    budget: Literal["kept", "layer-average"] = "kept"
    seeds: int = 5
    batch_size: int = 16
    fresh: Flag = False


def settings_of(options: CompareOptions, answers: AnswerOptions) -> "Settings":
    """Give what the options ask for.

    Raises:
        ValueError: names the option, the value and the way out.
        TypeError: when an argument in a strategy's text does not exist.
    """
    from tokenprune.evaluate.methods import Method, parse_budget
    from tokenprune.evaluate.settings import Settings

    check_counts(seeds=options.seeds, batch_size=options.batch_size, max_new_tokens=answers.max_new_tokens)
    chosen: dict[str, Any] = {}
    if options.strategy:
        chosen["methods"] = tuple(Method(text) for text in options.strategy)
    if options.keep:
        chosen["budgets"] = tuple(parse_budget(text) for text in options.keep)
    return Settings(
        seeds=tuple(range(options.seeds)),
        batch_size=options.batch_size,
        max_new_tokens=answers.max_new_tokens,
        positions=position_policy(answers),
        budget=options.budget,
        **chosen,
    )


def samples_of(options: DataOptions) -> "tuple[str, list[Sample]]":
    """Give name and samples of the data set that the options ask for, checked."""
    from tokenprune.evaluate.scenes import DEFAULT_COUNT, bundled_samples

    samples = read_samples(options)
    if samples is None:
        return BUNDLED_DATA, bundled_samples(options.count or DEFAULT_COUNT)
    return options.data or "", samples


@app.default
def compare(
    *,
    what: CompareOptions = CompareOptions(),
    data: DataOptions = DataOptions(),
    model: ModelOptions = ModelOptions(),
    answers: AnswerOptions = AnswerOptions(),
    kinds: Flag = False,
    out: Out = Path("runs"),
    json: JsonFlag = False,
) -> int:
    """Compare pruning strategies at several budgets.

    The result: accuracy with paired intervals against Random, agreement with the unpruned model, answers that flip, and
    time by stage. Without options: the bundled model on the bundled scenes. The unpruned model and the controls random,
    uniform_grid and grid_pool are always there.

    Args:
        kinds: also print accuracy by kind of question.
    """
    check_counts(count=data.count)
    settings = settings_of(what, answers)
    name, samples = samples_of(data)
    loaded = load_model(model)
    from tokenprune.evaluate.comparison import compare

    with Bar() as bar:
        comparison = compare(
            loaded,
            samples,
            settings,
            data=name,
            out=out,
            fresh=what.fresh,
            progress=bar,
            command=command_line(),
        )
    if json:
        print_json(comparison.report, comparison.folder)
    else:
        _print(comparison, kinds=kinds)
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
    loads = [session["load_average"] for session in comparison.facts["sessions"] if session["cells_run"]]
    worst = max((load for load in loads if load is not None), default=0.0)
    cores = os.cpu_count() or 1  # not those of this process alone: the load is the whole machine's
    if worst <= cores + 0.5:
        return ""
    return f"The machine was busy (load {worst:.1f} on {cores} cores): do not trust these times."
