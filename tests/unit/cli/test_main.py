import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenprune import __version__
from tokenprune.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"tokenprune {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["compare", "--dtype", "int8"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: tokenprune" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "select", "strategies", "analyze"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"Usage: tokenprune {command}" in capsys.readouterr().out


def test_runs_as_a_module_and_help_stays_light() -> None:
    code = (
        "import sys; from tokenprune.cli.main import build_app; build_app().help_print(); "
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'pandas', 'matplotlib', 'pyarrow'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    for argv in (["-c", code], ["-m", "tokenprune", "--version"]):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_strategies_lists_needs_site_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "strategies")
    assert status == 0
    for word in ("greedy_repmax", "mi_alignment", "random", "text", "projector", "2509.00320"):
        assert word in out


def test_strategies_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "strategies", "--json")
    assert status == 0
    entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in json.loads(out)}
    assert entries["trim_tokenator"]["needs"] == ["text"]
    assert entries["uniform_grid"]["site"] == "projector"
    assert entries["greedy_repmax"]["paper"]
    assert entries["random"]["example"] == "random(keep=0.5)"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compare", "--strategy", "greedy_repma"], "did you mean greedy_repmax"),
        (["compare", "--strategy", "greedy_repmax(keep=3)"], "give budgets with --keep"),
        (["compare", "--strategy", "greedy_repmax(colour=3)"], "colour"),
        (["compare", "--keep", "150%"], "--keep must be like 64 (tokens), 0.111 or 11.1% (share), got '150%'"),
        (["compare", "--count", "0"], "--count must be 1 or more, got 0"),
        (["compare", "--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["compare", "--batch-size", "-1"], "--batch-size must be 1 or more, got -1"),
        (["compare", "--data", "no/such/folder"], "data.jsonl does not exist"),
        (["select", "no.png", "--question", "q"], "the image no.png does not exist"),
    ],
)
def test_user_errors_are_one_line_and_exit_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *argv)
    assert status == 2
    assert out == ""
    assert err.startswith(f"tokenprune {argv[0]}: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_traceback_on_request() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        main(["--traceback", "compare", "--strategy", "greedy_repma"])


def test_a_missing_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenprune.evaluate.extras import need

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "tokenprune-lmm\[eval\]"'):
        need("pyarrow")


def test_ctrl_c_before_any_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenprune.cli.compare.settings_of", stop)
    status, _, err = run(capsys, "compare")
    assert status == 130
    assert err == "tokenprune: stopped\n"


def test_models_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tests.unit.evaluate.tiny import write_folder

    data = str(write_folder(tmp_path / "data", 1))
    status, _, err = run(capsys, "compare", "--data", data, "--model", str(tmp_path / "nothing"))
    assert status == 2
    assert "config.json; give a folder written by save_pretrained" in err
    status, _, err = run(capsys, "compare", "--data", data, "--device", "cuda:99")
    assert status == 2
    assert "--device cuda:99 cannot be used here" in err


def imported(*argv: str) -> tuple[int, str, set[str]]:
    """Status, standard error and the packages that a command line imports, in a process of its own."""
    code = (
        "import sys\nfrom tokenprune.cli.main import main\n"
        "try:\n    status = main()\nexcept SystemExit as stopped:\n    status = stopped.code\n"
        "print('PACKAGES', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    told, _, packages = done.stderr.partition("PACKAGES ")
    return done.returncode, told, set(packages.split())


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--help"], 0, ""),
        (["--version"], 0, ""),
        (["compare", "--help"], 0, ""),
        (["nonsense"], 2, "usage: tokenprune"),
        (["compare", "--dtype", "int8"], 2, "float32"),
        (["compare", "--strategy", "greedy_repma"], 2, "did you mean greedy_repmax"),
        (["analyze", "damage", "--strategy=trim_tokenato(keep=4)"], 2, "did you mean trim_tokenator"),
        (["compare", "--strategy", "mi_alignment(keep=0.8) >> gredy_repmax"], 2, "did you mean greedy_repmax"),
    ],
)
def test_help_and_typing_errors_import_nothing_heavy(argv: list[str], status: int, message: str) -> None:
    code, told, packages = imported(*argv)
    assert code == status
    assert message in told
    heavy = {"torch", "transformers", "numpy", "scipy", "pandas", "matplotlib", "pyarrow", "jinja2", "PIL", "tqdm"}
    assert not heavy & packages


def test_every_name_is_found_without_importing_the_strategies() -> None:
    from tokenprune import strategies
    from tokenprune.cli.names import known_names

    here = {name: cls for name, cls in strategies().items() if cls.__module__.startswith("tokenprune.")}
    assert known_names() == {*here, *(cls.__name__ for cls in here.values())}


def test_the_former_name_of_optimality_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--synthetic", "dups", "--size", "12", "--width", "4", "--images", "1", "--keep", "4", "--json"]
    found = []
    for name in ("optimality", "gap"):
        assert main([name, *argv, "--distance", "cosine", "--out", str(tmp_path / name)]) == 0
        found.append(json.loads(capsys.readouterr().out)["tables"]["gap"])
    keys = ("method", "value", "gap", "proved")
    assert [[row[key] for key in keys] for row in found[0]] == [[row[key] for key in keys] for row in found[1]]


def test_comparisons_and_selections_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenprune.bundled import load_scenes

    argv = ["compare", "--count", "4", "--keep", "28", "--seeds", "1", "--strategy", "greedy_repmax"]
    status, out, _ = run(capsys, *argv, "--device", "cpu", "--out", str(tmp_path), "--json")
    assert status == 0
    told = json.loads(out)
    written = list(csv.DictReader((Path(told["folder"]) / "results.csv").read_text().splitlines()))
    assert [row["method"] for row in told["tables"]["results"]] == [row["method"] for row in written]
    assert [row["accuracy"] for row in told["tables"]["results"]] == [float(row["accuracy"]) for row in written]
    load_scenes(count=1)[0].image.save(tmp_path / "a.png")
    status, out, _ = run(
        capsys, "select", str(tmp_path / "a.png"), "--question", "is there a seven ?", "--device", "cpu",
        "--strategy", "random(keep=9)", "--json",
    )  # fmt: skip
    kept = json.loads(out)
    assert (status, kept["tokens_out"], len(kept["indices"])) == (0, 9, 9)
