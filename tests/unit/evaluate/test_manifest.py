"""`manifest.json`: what was written comes back, and what is wrong with it is said."""

import json
import shlex
from pathlib import Path

import pytest

from tokenprune.evaluate.manifest import MANIFEST, Item, Manifest, Summary, read_manifest, shell_line, write_manifest

WHOLE = Manifest(
    kind="analyze x",
    title="Größe",
    command="tokenprune analyze x",
    configuration={"a": [1, None, {"b": 0.5}]},
    findings=("One.", "Two."),
    summaries=(Summary(title="t", columns=("a", "b\nc"), rows=(("1", "2"), ("3", "-"))),),
    tables=(Item(file="t.csv", title="T"),),
    figures=(Item(file="f.png", title="F", note="n"),),
    images=(Item(file="i.png", title="I"),),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("t.csv", "f.png", "i.png"):
        (tmp_path / name).touch()
    return tmp_path


def test_what_was_written_comes_back(folder: Path) -> None:
    write_manifest(folder, WHOLE)
    assert read_manifest(folder) == WHOLE


def test_a_file_that_is_not_there_cannot_be_named(folder: Path) -> None:
    (folder / "f.png").unlink()
    with pytest.raises(ValueError, match=r"f\.png is not in"):
        write_manifest(folder, WHOLE)
    assert not (folder / MANIFEST).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest_version": 99}, "version is 99, this program reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"tables": [{"name": "t.csv"}]}, "cannot be read"),
    ],
)
def test_other_forms_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    write_manifest(folder, WHOLE)
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        read_manifest(folder)


def test_a_missing_or_broken_one_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match="give a folder that tokenprune"):
        read_manifest(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="run the command again"):
        read_manifest(folder)


def test_the_command_survives_a_shell() -> None:
    words = ["compare", "--strategy", "mi_alignment(keep=0.8, text='question') >> greedy_repmax", "--out", "a b"]
    assert shlex.split(shell_line(words)) == ["tokenprune", *words]
