"""Analyses as functions: each gives a `Report` from Python as from the command line, and is whole on any terminal."""

import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples
from tokenprune import analysis
from tokenprune.analysis import AnalysedImage, bundled_images
from tokenprune.core.text import parse
from tokenprune.evaluate.loading import load
from tokenprune.evaluate.report import Report, as_text, read_report

OF_IMAGES = (analysis.alignment, analysis.diagnostics, analysis.information, analysis.redundancy, analysis.spatial)
OF_ANSWERS = (analysis.ablation, analysis.cases, analysis.damage, analysis.gap, analysis.layers)


@pytest.fixture(scope="module")
def images() -> list[AnalysedImage]:
    return list(bundled_images(load("bundled", device="cpu"), 3, swap=True))


def check(report: Report, folder: Path) -> None:
    """A report is complete, survives its folder, is plain JSON, and no cell of it is cut on a terminal."""
    assert report.kind.startswith("analyze ")
    assert report.shown
    assert all(len(table) for table in report.tables.values())
    report.write(folder)
    assert read_report(folder).shown == tuple(report.shown)
    assert json.loads(as_text(report))["configuration"]["images"] >= 1
    for width in (80, 100, 120):
        stream = io.StringIO()
        Console(file=stream, width=width, highlight=False).print(report)
        text = stream.getvalue()
        for shown in report.shown:
            for row in shown.rows:
                for part in (line for cell in row[1:] for line in cell.split("\n") if line[:1].isdigit()):
                    assert part in text, (width, part)


@pytest.mark.parametrize("function", OF_IMAGES, ids=lambda function: function.__name__)
def test_of_images(function: Callable[..., Report], images: list[AnalysedImage], tmp_path: Path) -> None:
    seen: list[AnalysedImage] = []

    def watch(things: list[AnalysedImage]) -> list[AnalysedImage]:
        seen.extend(things)
        return seen

    check(function(images, watch=watch), tmp_path / "run")
    assert seen == images


def test_of_answers(tmp_path: Path) -> None:
    loaded, samples = tiny_loaded(), tiny_samples(4)
    strategies = [parse("random(keep=4)"), parse("greedy_repmax(keep=4)")]
    options: dict[str, Any] = {"max_new_tokens": 2}
    damage = analysis.damage(loaded, samples, strategies, seeds=2, **options)
    check(damage, tmp_path / "damage")
    assert damage.configuration["strategies"] == ["random(keep=4)", "greedy_repmax(keep=4)"]
    assert set(damage.tables["damage"]["strategy"]) == {"dense", "random(keep=4)", "greedy_repmax(keep=4)"}
    check(analysis.cases(loaded, samples, strategies, cases=2, **options), tmp_path / "cases")
    check(analysis.layers(loaded, samples), tmp_path / "layers")
    check(analysis.gap(loaded, samples, keep=[4], seeds=1, **options), tmp_path / "gap")


@pytest.mark.parametrize("function", [*OF_IMAGES, *OF_ANSWERS], ids=lambda function: function.__name__)
def test_every_keyword_is_typed_and_explained(function: Callable[..., Report]) -> None:
    words = function.__doc__ or ""
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"        {parameter.name}: " in words, parameter.name
