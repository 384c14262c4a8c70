"""`tokenprune analyze`: the analyses as commands, made from the signatures and docstrings of `tokenprune.analysis`."""

import inspect
import json as json_module
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from docstring_parser import parse_from_object

from tokenprune import analysis
from tokenprune.analysis.images import images_of
from tokenprune.cli.console import Bar, bar, print_json, print_report
from tokenprune.cli.options import (
    BUNDLED_DATA,
    DataOptions,
    Flag,
    JsonFlag,
    ModelOptions,
    Out,
    Texts,
    check_counts,
    command_line,
    load_model,
    read_samples,
)
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.environment import git_state, package_versions
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.lock import locked
from tokenprune.evaluate.methods import parse_budget
from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION
from tokenprune.evaluate.report import Report
from tokenprune.evaluate.run_folder import write_atomically
from tokenprune.evaluate.samples import Sample

_EPILOGUE = """\
examples:
  tokenprune analyze alignment
  tokenprune analyze diagnostics --strategy "greedy_repmax(keep=64)" --strategy "divprune(keep=64)"
  tokenprune analyze damage --strategy "trim_tokenator(keep=64)" --count 100
  tokenprune analyze redundancy --layers
  tokenprune analyze redundancy --model llava-hf/llava-1.5-7b-hf --data my_questions --count 100
"""
app = App(
    name="analyze",
    help="Analyse visual tokens and selections; without options on the bundled model and its scenes.",
    help_epilogue=_EPILOGUE,
)
_FOUND = ("model", "samples", "images", "strategies", "second", "watch", "progress", "data", "out")
"""Parameters of analyses that the command line finds values for; all others are options."""


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    """An analysis as a command.

    Attributes:
        function: of `tokenprune.analysis`.
        count: bundled scenes that it looks at when --count says nothing.
        judged: whether answers are judged, so that the metric belongs to its configuration.
        swap: whether it looks at the same image under other questions.
        letterbox: whether pictures can be padded to squares first.
        layers: the same inside the language model, run by --layers.
    """

    function: Callable[..., Report]
    count: int = 60
    judged: bool = False
    swap: bool = False
    letterbox: bool = False
    layers: Callable[..., Report] | None = None


ANALYSES = {
    "ablation": _Analysis(function=analysis.ablation, count=200, judged=True),
    "alignment": _Analysis(function=analysis.alignment, swap=True),
    "cases": _Analysis(function=analysis.cases, count=40, judged=True),
    "damage": _Analysis(function=analysis.damage, count=200, judged=True),
    "diagnostics": _Analysis(function=analysis.diagnostics),
    "gap": _Analysis(function=analysis.gap, count=100, judged=True),
    # Its estimates take a second per image.
    "information": _Analysis(function=analysis.information, count=30, swap=True),
    "redundancy": _Analysis(function=analysis.redundancy, layers=analysis.layers),
    "spatial": _Analysis(function=analysis.spatial, letterbox=True),
}


def command_of(name: str, entry: _Analysis) -> Callable[..., int]:
    """Make a command of an analysis: its keywords become options, its docstring the help."""
    signature, told = inspect.signature(entry.function), parse_from_object(entry.function)
    if told.short_description is None:
        told = parse_from_object(inspect.unwrap(entry.function))
    texts = {one.arg_name: one.description or "" for one in told.params}
    parameters: list[tuple[str, Any, Any]] = []
    if "strategies" in signature.parameters:
        parameters.append(("strategy", _helped(Texts, f"{texts['strategies']} Repeatable."), ()))
    for own in signature.parameters.values():
        if own.name not in _FOUND:
            parameters.append((own.name, *_option(own, texts.get(own.name, ""))))
    if entry.layers is not None:
        parameters.append(("layers", _helped(Flag, "before every layer of the language model"), False))
    if entry.letterbox:
        text = (
            "pad pictures to squares as LLaVA-1.5 does (bundled scenes: cut to 5:8 first) and count tokens kept in the "
            "padding"
        )
        parameters.append(("letterbox", _helped(Flag, text), False))
    parameters += [("data", DataOptions, DataOptions()), ("model", ModelOptions, ModelOptions())]
    parameters += [("out", Out, Path("runs")), ("json", JsonFlag, False)]

    def command(**chosen: Any) -> int:  # noqa: ANN401
        return run(name, entry, **{**{one: default for one, _, default in parameters}, **chosen})

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for one, kind, default in parameters
        ]
    )
    command.__annotations__ = {one: kind for one, kind, _ in parameters} | {"return": int}
    command.__name__ = name
    command.__doc__ = told.short_description
    return command


def _option(parameter: inspect.Parameter, text: str) -> tuple[Any, Any]:
    """Give type and default of an option; sequences become options that may be repeated."""
    if isinstance(parameter.default, tuple):
        shown = ", ".join(map(str, parameter.default))
        return _helped(Texts, f"{text} Repeatable{f' (default: {shown})' if shown else ''}."), ()
    if isinstance(parameter.default, bool):
        return _helped(Flag, text), parameter.default
    return _helped(parameter.annotation, text), parameter.default


def _helped(kind: Any, text: str) -> Any:  # noqa: ANN401
    return Annotated[kind, Parameter(help=text)]


for _name, _entry in ANALYSES.items():
    app.command(command_of(_name, _entry), name=_name, help_epilogue="")


def run(
    name: str,
    entry: _Analysis,
    *,
    data: DataOptions,
    model: ModelOptions,
    out: Path,
    json: bool,
    strategy: Sequence[str] = (),
    layers: bool = False,
    letterbox: bool = False,
    **own: Any,  # noqa: ANN401
) -> int:
    """Analyse, print the tables, write CSV, PNG, run.json and the page."""
    _check(own, data)
    if "keep" in own:
        own["keep"] = tuple(parse_budget(text) for text in own["keep"]) or _default(entry, "keep")
    for package in ("matplotlib", "statsmodels", "jinja2", "pandas"):  # before any work
        need(package)
    strategies, samples, out = [parse(text) for text in strategy], read_samples(data), out.expanduser()
    out.mkdir(parents=True, exist_ok=True)  # before any work
    loaded = load_model(model)
    where = out / f"analyze-{name}{'-layers' if layers else '-letterbox' if letterbox else ''}"
    with ExitStack() as stack:
        if name != "ablation":  # which has a run folder, named after its configuration
            stack.enter_context(locked(where))
        if letterbox:
            own["letterbox"] = True
        report = _report(entry, loaded, samples, strategies, data, out, layers=layers, own=own)
        folder = report.folder or where
        if report.folder is not None:
            stack.enter_context(locked(folder, inside=True))
        report = replace(report, command=command_line(), configuration=_facts(name, entry, loaded, data, report))
        report.write(folder)
        facts = {**report.configuration, "findings": list(report.findings)}
        text = json_module.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "run.json", text.encode())
    if json:
        print_json(report, folder)
    else:
        print_report(report, folder)
    return 0 if report.complete else 130


def _check(own: dict[str, Any], data: DataOptions) -> None:
    counts = {name: own[name] for name in ("cases", "seeds", "batch_size", "max_new_tokens") if name in own}
    check_counts(count=data.count, **counts)
    if not 0.0 <= own.get("exact_seconds", 0.0) < 3600.0:
        raise ValueError(f"--exact-seconds must be 0 (leave it out) to 3600, got {own['exact_seconds']}")
    if not -1.0 < own.get("tau", 0.0) < 1.0:
        raise ValueError(f"--tau must lie between -1 and 1, got {own['tau']}")


def _default(entry: _Analysis, name: str) -> Any:  # noqa: ANN401
    return inspect.signature(entry.function).parameters[name].default


def _report(
    entry: _Analysis,
    loaded: LoadedModel,
    samples: "Sequence[Sample] | None",
    strategies: Sequence[PruningStrategy],
    data: DataOptions,
    out: Path,
    *,
    layers: bool,
    own: dict[str, Any],
) -> Report:
    """Find what the analysis asks for, and let it run."""
    function = entry.layers if layers and entry.layers is not None else entry.function
    wants = inspect.signature(function).parameters
    letterbox = bool(own.pop("letterbox", False))
    count = data.count or entry.count
    if "strategies" in wants:
        own["strategies"] = strategies
    if "images" in wants:
        used = strategies or _default_strategies(function)
        images = images_of(loaded, samples, used, count=count, swap=entry.swap, letterbox=letterbox)
        report = function(images, watch=lambda things: bar(things, "images"), **own)
        return replace(report, configuration={**report.configuration, "letterbox": letterbox}) if letterbox else report
    if samples is None:
        from tokenprune.evaluate.scenes import bundled_samples, second_questions

        samples = bundled_samples(count)
        if "second" in wants:
            own["second"] = second_questions(count)
    if "out" in wants:
        own |= {"out": out, "data": data.data or BUNDLED_DATA}
    if "progress" not in wants:
        return function(loaded, samples, watch=bar, **own)
    with Bar() as progress:
        return function(loaded, samples, progress=progress, **own)


def _default_strategies(function: Callable[..., Report]) -> Sequence[PruningStrategy]:
    """Give the strategies whose signals must be read when none are given."""
    return analysis.default_selections() if function in (analysis.diagnostics, analysis.spatial) else ()


def _facts(name: str, entry: _Analysis, loaded: LoadedModel, data: DataOptions, report: Report) -> dict[str, Any]:
    return {
        "analysis": name,
        "model": loaded.name,
        "weights": loaded.digest,
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "device": loaded.device,
        "data": data.data or BUNDLED_DATA,
        "metric": f"{METRIC}, version {METRIC_VERSION}" if entry.judged else None,
        **report.configuration,
        "versions": package_versions(),
        "git": git_state(),
    }
