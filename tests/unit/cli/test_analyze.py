"""`analyze` on the bundled model with a few scenes, and on a tiny model with a data set of one's own."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.evaluate.tiny import tiny_loaded, write_folder
from tokenprune.cli.main import main
from tokenprune.evaluate.report import read_report


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def figures(what: str) -> list[str]:
    return [f"{what}.png", *(["turns.png"] if what == "damage" else [])]


@pytest.mark.parametrize(
    ("what", "files", "words"),
    [
        (
            "damage",
            ["damage.csv", "tests.csv", "calibration.csv", "turns.csv"],
            ["right to", "Holm", "Second question", "random(keep=0.111)", "from right to wrong"],
        ),
        ("alignment", ["alignment.csv"], ["variance", "text='question'", "Another question changes", "lie on objects"]),
        ("diagnostics", ["diagnostics.csv", "overlap.csv"], ["effective", "trim_tokenator(keep=0.111)", "duplicates"]),
        ("redundancy", ["redundancy.csv"], ["as they are (tau 0.9)", "unique, equal counts, unit, centred", "visual"]),
        ("spatial", ["spatial.csv", "heat.csv"], ["row shift", "over chance", "greedy_repmax(keep=0.111)"]),
    ],
)
def test_each_analysis_prints_a_table_and_writes_its_files(
    what: str, files: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", what, "--count", "3", "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    folder = tmp_path / f"analyze-{what}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*files, *figures(what), "manifest.json", "report.html", "run.json"]
    )
    for name in files:
        assert len(rows(folder / name)) >= 3
    with Image.open(folder / f"{what}.png") as picture:
        assert min(picture.size) > 400
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["model"], facts["images"], facts["data"]) == ("bundled", 3, "bundled scenes")
    assert len(facts["weights"]) == 64
    report = read_report(folder)
    assert (report.kind, [f"{name}.csv" for name in report.tables]) == (f"analyze {what}", files)
    assert [f"{name}.png" for name in report.figures] == figures(what)
    assert report.command.startswith(f"tokenprune analyze {what} --count 3")
    assert all(len(row) == len(summary.columns) for summary in report.shown for row in summary.rows)


def test_cases_are_shown_with_pictures_and_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["analyze", "cases", "--count", "3", "--device", "cpu", "--strategy", "random(keep=2)"]
    assert main([*base, "--cases", "2", "--out", str(tmp_path)]) == 0
    assert "of 3 samples" in capsys.readouterr().out
    folder = tmp_path / "analyze-cases"
    found = rows(folder / "cases.csv")
    assert len(found) == 6  # three samples, dense and one strategy
    assert len(list((folder / "cases").glob("*.jpeg"))) == 4
    page = (folder / "report.html").read_text()
    assert page.count('class="slide"') == 2
    assert 'class="word changed"' in page
    assert main([*base, "--sample", found[2]["sample"], "--out", str(tmp_path / "chosen")]) == 0
    assert len(rows(tmp_path / "chosen" / "analyze-cases" / "cases.csv")) == 2
    assert main([*base, "--sample", "nobody", "--out", str(tmp_path)]) == 2
    assert "--sample nobody: no such id among 3 samples" in capsys.readouterr().err


def test_another_model_and_data_set_and_strategies_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    data = write_folder(tmp_path / "mine", 4)
    own = ["--model", str(tmp_path / "model"), "--data", str(data), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    assert main(["analyze", "alignment", *own, "--strategy", "mi_alignment(keep=4)"]) == 0
    found = {row["measure"]: row for row in rows(tmp_path / "runs" / "analyze-alignment" / "alignment.csv")}
    assert float(found["dropped_share"]["value"]) == 0.75
    assert found["question_change"]["images"] == "4"  # the next question of the data set takes the place
    assert found["object_dropped"]["images"] == "0"  # no boxes, nothing claimed about objects
    assert found["object_dropped"]["value"] == ""
    assert "lie on objects" not in capsys.readouterr().out
    strategy = "mi_alignment(keep=0.8) >> greedy_repmax(keep=4)"
    assert main(["analyze", "spatial", *own, "--strategy", strategy]) == 0
    heat = rows(tmp_path / "runs" / "analyze-spatial" / "heat.csv")
    assert sum(float(row["share_of_images"]) for row in heat) == pytest.approx(4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ablation", "--keep", "0"], "--keep must be like 64"),
        (["ablation", "--exact-seconds", "-1"], "--exact-seconds must be 0"),
        (["gap", "--count", "1", "--exact-seconds", "0"], "must be more than 0 for gap"),
        (["information", "--count", "1", "--strategy", "random(keep=4)"], "give one mi_alignment"),
        (["alignment", "--count", "0"], "--count must be 1 or more, got 0"),
        (["redundancy", "--tau", "2"], "--tau must lie between -1 and 1, got 2.0"),
        (["alignment", "--count", "1", "--strategy", "random(keep=4)"], "give mi_alignment"),
        (["spatial", "--count", "1", "--strategy", "fastv(keep=4)"], "acts inside the language model"),
        (["alignment", "--count", "1", "--strategy", "mi_alignment(keep=1.0)"], "drops none of the 256 tokens"),
    ],
)
def test_wrong_input_names_the_way_out(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *argv, "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("ablation", "--strategy"),
        ("gap", "--strategy"),
        ("redundancy", "--strategy"),
        ("spatial", "--layers"),
        ("redundancy", "--letterbox"),
        ("damage", "--tau"),
        ("alignment", "--seeds"),
    ],
)
def test_every_analysis_has_its_own_options_and_no_others(
    what: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["analyze", what, option, "1"])
    err = capsys.readouterr().err
    assert f"usage: tokenprune analyze {what} [OPTIONS]; tokenprune analyze {what} --help says more" in err
    assert f"tokenprune analyze {what}: error: Unknown option: {option}" in err
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", what, "--help"])
    assert option not in capsys.readouterr().out


def test_help_is_the_docstring_of_the_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", "damage", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("Count flips", "random draws of strategies that draw. [default: 3]", "--max-new-tokens", "--json"):
        assert words in out


def test_json_is_the_report_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["analyze", "redundancy", "--count", "2", "--device", "cpu", "--out", str(tmp_path), "--json"]
    assert main(base) == 0
    told = json.loads(capsys.readouterr().out)
    written = rows(tmp_path / "analyze-redundancy" / "redundancy.csv")
    assert len(told["tables"]["redundancy"]) == len(written) > 0
    for row, line in zip(told["tables"]["redundancy"], written, strict=True):
        assert (row["measure"], row["side"]) == (line["measure"], line["side"])
        assert row["value"] == (float(line["value"]) if line["value"] else None)  # all digits, in both
    assert told["folder"] == str(tmp_path / "analyze-redundancy")
    assert (told["kind"], told["configuration"]["images"]) == ("analyze redundancy", 2)


def test_redundancy_layer_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "redundancy", "--layers", "--count", "2", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "behind the last layer" in capsys.readouterr().out
    folder = tmp_path / "analyze-redundancy-layers"
    table = rows(folder / "layers.csv")
    assert {row["layer"] for row in table} == {"0", "1", "2", "3", "4"}
    assert {row["side"] for row in table} == {"visual", "text", "difference"}
    assert list(read_report(folder).figures) == ["layers"]


def test_ablation_keeps_a_folder_of_its_own_and_goes_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    data = write_folder(tmp_path / "mine", 2)
    argv = ["analyze", "ablation", "--model", str(tmp_path / "model"), "--data", str(data), "--device", "cpu"]
    argv += ["--keep", "4", "--seeds", "1", "--max-new-tokens", "2", "--out", str(tmp_path / "runs")]
    assert main([*argv, "--exact-seconds", "0"]) == 0
    out = capsys.readouterr().out
    for word in (
        "in place of stage 1: smallest norms",
        "p, Holm",
        "pick order, original",
        "against 'both, text first'",
    ):
        assert word in out
    (folder,) = (tmp_path / "runs").iterdir()
    report = read_report(folder)
    assert (report.kind, report.configuration["keep"]) == ("analyze ablation", 4)
    table = rows(folder / "ablation.csv")
    assert {row["factor"] for row in table} >= {"stages", "optimiser", "objective", "order and positions", "controls"}
    assert len((folder / "ablation.png").read_bytes()) > 10_000
    times = {file: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}
    assert main([*argv, "--exact-seconds", "0"]) == 0
    assert {file: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()} == times
    assert main([*argv, "--keep", "5"]) == 2
    assert "one budget at a time" in capsys.readouterr().err


def test_gap_against_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["analyze", "gap", "--count", "3", "--keep", "28", "--seeds", "1", "--exact-seconds", "0.05"]
    assert main([*argv, "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for word in ("rounded relaxation", "random 50%", "closing that gap changes accuracy", "normalised gap"):
        assert word in out
    folder = tmp_path / "analyze-gap"
    assert len(rows(folder / "gap_samples.csv")) == 3 * 10
    found = {(row["set"], row["measure"]): row["value"] for row in rows(folder / "gap_accuracy.csv")}
    assert float(found["exact", "gap"]) <= float(found["greedy", "gap"]) < float(found["random 100%", "gap"])
    assert read_report(folder).configuration["budgets"] == [28]


def test_information_on_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    own = ["--model", str(tmp_path / "model"), "--data", str(write_folder(tmp_path / "mine", 3)), "--device", "cpu"]
    assert main(["analyze", "information", *own, "--out", str(tmp_path / "runs")]) == 0
    assert "bits per token about what is kept" in capsys.readouterr().out
    found = {row["measure"]: row for row in rows(tmp_path / "runs" / "analyze-information" / "information.csv")}
    assert found["question_bits"]["images"] == "3"
    assert found["by_alignment"]["value"] == ""  # no boxes, nothing claimed about objects


def test_tokens_kept_in_the_padding_of_letterboxed_pictures(tmp_path: Path) -> None:
    argv = ["analyze", "spatial", "--letterbox", "--count", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*argv, "--strategy", "uniform_grid(keep=64)"]) == 0
    found = {row["measure"]: row for row in rows(tmp_path / "analyze-spatial-letterbox" / "spatial.csv")}
    assert float(found["padding_share"]["value"]) == 6 / 16  # 3 of 16 rows above and 3 below, or columns
    assert float(found["padding_kept"]["value"]) == pytest.approx(6 / 16, abs=0.13)
