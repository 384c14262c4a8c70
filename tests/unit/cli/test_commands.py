"""`compare` and `select` from the command line, on a tiny model that was saved to a folder."""

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.evaluate.tiny import tiny_image, tiny_loaded, write_folder
from tokenprune.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    loaded = tiny_loaded()
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


def test_compare_prints_the_table_and_reuses_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "mine", 4)
    argv = ["compare", "--model", model, "--data", str(data), "--keep", "25%", "--strategy", "greedy_repmax"]
    argv += ["--seeds", "2", "--batch-size", "2", "--max-new-tokens", "2", "--out", str(tmp_path / "runs")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    for word in ("dense", "random", "uniform_grid", "grid_pool", "greedy_repmax", "4 (25.0%)", "n = 4 questions"):
        assert word in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith(tuple("0123456789abcdef"))
    for name in (
        "accuracy_vs_tokens.png",
        "kept_tokens.png",
        "results.csv",
        "samples.jsonl",
        "run.json",
        "config.json",
    ):
        assert (folder / name).stat().st_size > 0
        assert name == "config.json" or name in out

    monkeypatch.setenv("COLUMNS", "80")
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "6 of 6 cells come from an earlier run" in out
    assert max(map(len, out.splitlines())) <= 80 + len(str(folder))
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_stopped_compare_exits_with_130_and_says_so(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenprune.evaluate.comparison.run_missing", stop)
    data = write_folder(tmp_path / "mine", 1)
    status = main(["compare", "--model", model, "--data", str(data), "--out", str(tmp_path / "runs")])
    assert status == 130
    assert (
        "Stopped: 0 of 51 cells are finished and kept; the same command goes on from here." in capsys.readouterr().err
    )


def test_select_writes_the_overlay_and_prints_both_answers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "scene.png"
    tiny_image(0).save(image)
    argv = [
        "select",
        str(image),
        "--question",
        "w12 w50",
        "--strategy",
        "mi_alignment(keep=0.8) >> greedy_repmax(keep=3)",
    ]
    assert main([*argv, "--model", model, "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "3 of 16 visual tokens (18.8%)" in out
    assert "dense      w" in out
    assert "pruned     w" in out
    with Image.open(tmp_path / "scene.kept.png") as drawn:
        assert drawn.size == (1024, 1024)


def test_select_checks_where_it_writes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "scene.png"
    tiny_image(0).save(image)
    out = str(tmp_path / "no" / "x.png")
    assert main(["select", str(image), "--question", "w12", "--model", model, "--out", out]) == 2
    assert "does not exist" in capsys.readouterr().err
