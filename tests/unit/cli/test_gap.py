"""`tokenprune optimality` on files and synthetic clouds: table, CSV, figure, errors."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokenprune.cli.main import main
from tokenprune.cli.optimality import _method, percent
from tokenprune.cli.token_files import read_tokens
from tokenprune.repmax import GapRow, exact_repmax, greedy_repmax, measure_gap, token_cloud

CLOUDS = np.stack([token_cloud("clusters", 48, 8, seed=seed) for seed in range(2)])


def test_files_give_table_csv_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "cloud.npy", CLOUDS)
    save_file({"scene": torch.from_numpy(CLOUDS[0]).to(torch.bfloat16)}, tmp_path / "cloud.safetensors")
    files = [str(tmp_path / "cloud.npy"), str(tmp_path / "cloud.safetensors")]
    out = tmp_path / "deep" / "out"
    argv = ["gap", *files, "--keep", "6,25%", "--distance", "cosine,angular", "--out", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for word in ("cosine", "angular", "greedy+swap", "relax_round", "exact", "3/3", "cloud[1]", "scene", "gap.csv"):
        assert word in text
    rows = list(csv.DictReader((out / "gap.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 2 * 7
    assert list(rows[0]) == GapRow.columns()
    assert {row["k"] for row in rows} == {"6", "12"}
    assert all(float(row["gap"]) <= 2e-9 for row in rows if row["method"] == "exact")
    assert all(float(row["gap"]) <= float(row["tangent_gap"]) + 1e-9 for row in rows)
    with Image.open(out / "gap.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("L").getcolors() or []) > 20


def test_synthetic_clouds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["gap", "--synthetic", "dups", "--size", "40", "--width", "8", "--images", "2", "--keep", "8"]
    assert main([*argv, "--distance", "euclidean", "--out", str(tmp_path)]) == 0
    assert "dups-1" in capsys.readouterr().out


def test_the_rows_say_the_truth() -> None:
    x = token_cloud("dups", 60, 6, seed=3)
    rows = {row.method: row for row in measure_gap(x, 12, distance="euclidean")}
    best = exact_repmax(x, 12, distance="euclidean").value
    assert rows["exact"].value == pytest.approx(best, rel=1e-9)
    for row in rows.values():
        assert row.gap == pytest.approx(1 - row.value / best, abs=2e-9)
        assert row.gap <= row.normalised_gap
        assert row.convex_gap >= row.gap - 1e-9
        assert row.proved
    assert rows["greedy"].gap <= rows["random"].gap
    kept = x[greedy_repmax(x, 12, distance="euclidean")]
    counts = np.unique(kept, axis=0, return_counts=True)[1]
    assert rows["greedy"].copies == counts[counts > 1].sum()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.npy"], "does not exist"),
        (["--synthetic", "real"], "kind must be one of"),
        (["--synthetic", "dups", "--keep", "many"], "--keep must be like"),
        (["--synthetic", "dups", "--keep", "0"], "--keep must be"),
        (["--synthetic", "dups", "--keep", "576"], "it must be 2 to 575"),
        (["--synthetic", "dups", "--distance", "l1"], "--distance must list"),
        (["--synthetic", "dups", "--images", "0"], "--images must be"),
        (["--synthetic", "dups", "cloud.npy"], "not both"),
    ],
)
def test_errors(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gap", *argv]) == 2
    assert message in capsys.readouterr().err


def test_reading(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ValueError, match="tokens are"):
        list(read_tokens(tmp_path / "flat.npy"))
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be a \.npy"):
        list(read_tokens(tmp_path / "x.txt"))
    with pytest.raises(ValueError, match="k must be in"):
        measure_gap(np.eye(4), 4)
    assert percent(0.0) == "0"


@pytest.mark.parametrize(
    ("text", "words"), [("grid_pool", "makes new ones"), ("fastv", "acts at the site 'decoder'"), ("tome", "makes new")]
)
def test_strategies_that_do_not_choose_before_the_language_model_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _method(text)
