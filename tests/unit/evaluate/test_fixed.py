"""Methods without a budget in a comparison: a row of their own, with what they reached."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune.cli.tables import result_tables
from tokenprune.evaluate import figures
from tokenprune.evaluate.batches import resampling_units
from tokenprune.evaluate.comparison import Comparison, compare
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.result_table import (
    answers_text,
    findings,
    leaders,
    legend,
    results_summary,
    times_text,
    tokens_text,
)
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.significance import corrected
from tokenprune.evaluate.statistics import paired_difference
from tokenprune.evaluate.summary import Row, summarise

SAMPLES = tiny_samples(8, answers=("w51 w18", "w10", "w45 w29", "w116"))  # some that each of them gives
VTW, FIT = "vtw(layer=1)", "fitprune(drops=(3, 2))"
DRAWN = "random(keep=0.5) >> vtw(layer=1)"
MUST = "mustdrop(global_thr=0.06, individual_thr=0.9, layers=(1,), key_share=0)"
SETTINGS = tiny_settings(methods=tuple(Method(text) for text in ("greedy_repmax", VTW, FIT, DRAWN, MUST)))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def done(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(loaded, SAMPLES, SETTINGS, data="tiny", out=tmp_path_factory.mktemp("fixed"))


@pytest.fixture(scope="module")
def rows(done: Comparison) -> dict[str, Row]:
    return {row.method: row for row in done.rows if row.is_fixed}


def right(done: Comparison, method: str, keep: float | None) -> list[list[bool]]:
    """Correctness by seed, read from the file of all answers."""
    entries = [json.loads(line) for line in (done.folder / "samples.jsonl").read_text().splitlines()]
    own = [entry for entry in entries if (entry["method"], entry["keep"]) == (method, keep)]
    return [[e["correct"] for e in own if e["seed"] == seed] for seed in dict.fromkeys(e["seed"] for e in own)]


def test_they_stand_last_once_each_with_what_they_reached(done: Comparison, rows: dict[str, Row]) -> None:
    assert [row.method for row in done.rows][-4:] == [VTW, FIT, DRAWN, MUST]
    assert list(rows) == [VTW, FIT, DRAWN, MUST]
    found = {name: (row.keep, row.seeds, row.tokens_out, row.tokens_kept) for name, row in rows.items()}
    assert found[VTW] == (None, 1, 8, 0)  # 16 tokens enter the first of two layers
    assert found[FIT] == (None, 1, (16 + 13) / 2, 11)
    assert found[DRAWN] == (None, 2, 4, 0)
    assert rows[MUST].tokens_out == (16 + rows[MUST].tokens_kept) / 2
    least, most = rows[MUST].tokens_range
    assert 1 <= least < most <= 16


def test_random_at_as_many_tokens_is_what_they_are_compared_with_and_nothing_else(
    loaded: LoadedModel, done: Comparison, rows: dict[str, Row]
) -> None:
    runner = Runner(loaded, SAMPLES, 3)
    runner.prepare()
    units = resampling_units(SAMPLES, runner.names)
    expected = paired_difference(right(done, VTW, None), right(done, "random", 0.5), units)
    assert expected.value != 0
    assert (rows[VTW].reference, rows[VTW].difference, rows[VTW].no_difference) == (0.5, expected, "")
    for name, tokens in ((FIT, 14), (DRAWN, 4), (MUST, round(rows[MUST].tokens_out))):
        row = rows[name]
        assert (row.reference, row.difference, row.p_value, row.p_corrected) == (None, None, None, None)
        assert row.no_difference == f"no Random row with {tokens} tokens; add --keep {tokens}"
    half = [row for row in done.rows if row.reference == 0.5]
    assert [row.method for row in half] == ["uniform_grid", "grid_pool", "greedy_repmax", VTW]
    assert [row.p_corrected for row in half] == corrected([row.p_value or 0.0 for row in half])


def test_the_budget_that_the_table_names_fills_the_comparison(loaded: LoadedModel, tmp_path: Path) -> None:
    settings = tiny_settings(methods=(Method(FIT), Method(DRAWN)), budgets=(13, 15, 14, 4))
    result = compare(loaded, SAMPLES, settings, data="tiny", out=tmp_path, figures=False)
    found = {row.method: row.reference for row in result.rows if row.is_fixed}
    assert found == {FIT: 14, DRAWN: 4}
    average = replace(settings, budget="layer-average")
    result = compare(loaded, SAMPLES, average, data="tiny", out=tmp_path, figures=False)
    assert {row.method: row.reference for row in result.rows if row.is_fixed} == found


def test_tables_say_what_was_reached_and_why_nothing_is_compared(done: Comparison, rows: dict[str, Row]) -> None:
    table = results_summary(done.rows, metric="m")
    cells = {line[0]: line for line in table.rows}
    assert cells[VTW][1:3] == ("fixed: 50.0% per layer, 0.0% left", "8 (50.0%), 0 left")
    assert cells[FIT][1] == "fixed: 90.6% per layer, 68.8% left"
    assert cells[FIT][4] == "-" != cells[VTW][4]
    assert f"{FIT}: no Random row with 14 tokens; add --keep 14" in legend(done.rows)
    assert f"; {VTW}: " not in legend(done.rows)
    assert f"({VTW}: " not in legend(done.rows)
    assert "without a budget" not in legend([row for row in done.rows if not row.is_fixed])
    told = [text for text in findings(done.rows) if "no budget to set" in text]
    assert [text.split(" has no")[0] for text in told] == list(rows)
    assert "minus Random at 50%: " in told[0]
    assert told[1].endswith("; not compared: no Random row with 14 tokens; add --keep 14.")


def test_none_of_them_leads_for_they_reached_different_numbers(done: Comparison) -> None:
    best = [replace(row, accuracy=replace(row.accuracy, value=2.0)) if row.method == FIT else row for row in done.rows]
    assert best[-3].accuracy.value == 2
    assert len(best) - 3 not in leaders(best)
    console = Console(width=400)
    (shown,) = result_tables(best, console)
    assert shown.rows[-3].style is None


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_number_is_cut_on_a_narrow_terminal(done: Comparison, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for table in result_tables(done.rows, console):
        console.print(table)
    text = stream.getvalue()
    assert "…" not in text
    for row in done.rows:
        for cell in (tokens_text(row), *answers_text(row), *times_text(row)):
            assert cell in text, cell


def test_the_files_have_them(done: Comparison, rows: dict[str, Row]) -> None:
    with (done.folder / "results.csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file) if line["method"] in rows}
    for name, row in rows.items():
        line = lines[name]
        assert line["keep"] == ""
        assert float(line["tokens_out"]) == pytest.approx(row.tokens_out, rel=1e-5)
        assert (line["random_keep"], line["no_random"]) == ("0.5" if name == VTW else "", row.no_difference)
        assert bool(line["minus_random"]) == bool(line["p_random"]) == (name == VTW)
    report = json.loads((done.folder / "run.json").read_text())
    assert list(report["fixed"]) == sorted(rows)
    assert report["fixed"][VTW]["layer_average"] == 8
    page = (done.folder / "report.html").read_text()
    assert "fixed: 50.0% per layer, 0.0% left" in page
    assert "add --keep 14" in page


def test_a_stopped_run_goes_on_with_the_fixed_cells_that_are_missing(
    loaded: LoadedModel, done: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = sorted((done.folder / "cells").glob("*.json"))
    assert [path.stem.rsplit("-", 1)[-1] for path in last[-5:]] == ["fixed", "fixed", "s0", "s1", "fixed"]
    last[-1].unlink()
    last[-5].unlink()
    ran: list[str] = []
    run = Runner.run

    def noted(self: Runner, cell: Any, *rest: Any) -> dict[str, Any]:
        ran.append(cell.method)
        return run(self, cell, *rest)

    monkeypatch.setattr(Runner, "run", noted)
    result = compare(loaded, SAMPLES, SETTINGS, data="tiny", out=done.folder.parent, figures=False)
    assert result.folder == done.folder
    assert ran == [VTW, MUST]
    assert [(r.method, r.accuracy, r.difference) for r in result.rows] == [
        (r.method, r.accuracy, r.difference) for r in done.rows
    ]


def test_without_finished_budgets_there_is_a_row_and_no_comparison(done: Comparison) -> None:
    cells = SETTINGS.cells
    ids = [cells[0].id, next(cell.id for cell in cells if cell.method == VTW)]
    contents = {id_: json.loads((done.folder / "cells" / f"{id_}.json").read_text()) for id_ in ids}
    found = summarise(cells, contents, SAMPLES, [sample.id for sample in SAMPLES], [])
    assert [(row.method, row.no_difference) for row in found] == [
        ("dense", ""),
        (VTW, "no Random row with 8 tokens; add --keep 8"),
    ]
    assert figures.accuracy_figure(found)[:4] == b"\x89PNG"


def test_the_figure_has_one_point_at_what_was_reached(done: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "to_png", drawn.append)
    figures.accuracy_figure(done.rows)
    left, right_panel = drawn[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    line = lines[f"{VTW} (fixed)"]
    row = next(row for row in done.rows if row.method == VTW)
    assert line.get_xydata().tolist() == [[8, 100 * row.accuracy.value]]
    assert line.get_linestyle() == "None"
    assert lines["greedy_repmax"].get_linestyle() == "-"
    assert len(right_panel.containers) == 4  # two controls, greedy_repmax, and the one that has a Random row
