"""Two processes on one run folder: the second is told who is at work, and a process that died holds nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune.cli.main import main
from tokenprune.evaluate.comparison import compare
from tokenprune.evaluate.cost.results_file import ResultsFile
from tokenprune.evaluate.lock import locked
from tokenprune.evaluate.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
PROGRAM = """
import ast, sys
from pathlib import Path
from tokenprune.evaluate.cost.results_file import ResultsFile
from tokenprune.evaluate.lock import Lock
from tokenprune.evaluate.run_folder import RunFolder

held = None
print("ready", flush=True)
for line in sys.stdin:
    kind, path, *rest = ast.literal_eval(line)
    if held is not None:
        held.release() if isinstance(held, Lock) else held.close()
    held = None
    try:
        if kind == "run":
            held = RunFolder.open(Path(path), *rest)
        elif kind == "results":
            held = ResultsFile(Path(path), ["a"])
        elif kind == "lock":
            held = Lock(Path(path).with_name(f".{Path(path).name}.lock"), what=Path(path))
        print("done", flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


class Other:
    """A process of its own that takes locks when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, kind: str, path: Path, *rest: object) -> str:
        """Its answer: "done", or the error."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{(kind, str(path), *rest)!r}\n")
        self.process.stdin.flush()
        return self._answer()

    @contextmanager
    def holds(self, kind: str, path: Path, *rest: object) -> Iterator[int]:
        """While it holds a lock; gives its process id."""
        assert self.ask(kind, path, *rest) == "done"
        try:
            yield self.process.pid
        finally:
            assert self.ask("nothing", path) == "done"


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    found = Other()
    with found.process:
        yield found
        found.process.communicate()


RUN = ("x", {"a": 1})


def test_the_second_process_is_told_who_works_in_the_folder(other: Other, tmp_path: Path) -> None:
    with other.holds("run", tmp_path, *RUN) as pid:
        for fresh in (False, True):
            with pytest.raises(ValueError, match=rf"x-\w+ is in use by process {pid} on .* since .*; wait until"):
                RunFolder.open(tmp_path, *RUN, fresh=fresh)
        with RunFolder.open(tmp_path, "x", {"a": 2}):  # another configuration has a folder of its own
            pass
    with RunFolder.open(tmp_path, *RUN):
        assert f"is in use by process {os.getpid()} on" in other.ask("run", tmp_path, *RUN)
    with other.holds("run", tmp_path, *RUN):
        pass


def test_fresh_throws_nothing_away_while_another_process_works(other: Other, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, *RUN) as folder:
        folder.write_cell("000-dense", {})
    with other.holds("run", tmp_path, *RUN):
        with pytest.raises(ValueError, match="is in use by"):
            RunFolder.open(tmp_path, *RUN, fresh=True)
        assert folder.has_cell("000-dense")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    victim = Other()
    with victim.process:
        assert victim.ask("run", tmp_path, *RUN) == "done"
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        with RunFolder.open(tmp_path, *RUN):
            pass


@pytest.mark.parametrize("note", ["", "{", "[]", '{"process": "me"}', "[" * 100_000, None])
def test_a_note_that_cannot_be_read_does_not_hide_the_lock(note: str | None, other: Other, tmp_path: Path) -> None:
    with other.holds("lock", tmp_path / "out"):
        file = tmp_path / ".out.lock.json"
        if note is None:
            file.unlink()
        else:
            file.write_text(note)
        with pytest.raises(ValueError, match="out is in use by another process; wait"), locked(tmp_path / "out"):
            pass


def test_one_process_may_open_a_folder_again(other: Other, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, *RUN) as first:
        with RunFolder.open(tmp_path, *RUN) as second:
            assert first.path == second.path
        second.close()
        assert "is in use by" in other.ask("run", tmp_path, *RUN)  # the first still holds it
    with other.holds("run", tmp_path, *RUN):
        pass


def test_a_folder_that_could_not_be_opened_is_not_locked(other: Other, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, *RUN) as folder:
        config = folder.path / "config.json"
    text = config.read_text()
    config.write_text("{}")
    with pytest.raises(ValueError, match="is not the configuration"):
        RunFolder.open(tmp_path, *RUN)
    config.write_text(text)
    with other.holds("run", tmp_path, *RUN):
        pass


def test_a_comparison_does_not_start_beside_another(other: Other, tmp_path: Path) -> None:
    def run() -> Path:
        settings = tiny_settings(budgets=(2,))
        return compare(tiny_loaded(), tiny_samples(2), settings, data="tiny", out=tmp_path, figures=False).folder

    folder = run()
    before = (folder / "run.json").read_bytes()
    name, config = folder.name.rsplit("-", 1)[0], json.loads((folder / "config.json").read_text())
    del config["schema_version"]
    with other.holds("run", tmp_path, name, config), pytest.raises(ValueError, match="is in use by process"):
        run()
    assert (folder / "run.json").read_bytes() == before
    assert run() == folder


def test_benchmark_files_and_folders_of_other_commands(
    other: Other, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with other.holds("results", tmp_path / "bench.csv") as pid:
        with pytest.raises(ValueError, match=rf"bench\.csv is in use by process {pid}"):
            ResultsFile(tmp_path / "bench.csv", ["a"])
        ResultsFile(tmp_path / "other.csv", ["a"]).close()
    ResultsFile(tmp_path / "bench.csv", ["a"]).close()
    with other.holds("lock", tmp_path / "gap"):
        argv = ["gap", "--synthetic", "dups", "--size", "20", "--images", "1", "--keep", "4", "--out"]
        assert main([*argv, str(tmp_path / "gap")]) == 2
        assert "is in use by process" in capsys.readouterr().err
    with other.holds("lock", tmp_path / "analyze-spatial"):
        assert main(["analyze", "spatial", "--count", "1", "--out", str(tmp_path)]) == 2
        assert "is in use by process" in capsys.readouterr().err
