"""`Report`: what was written comes back, what is wrong with a folder is said, and every form shows the same numbers."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tokenprune.evaluate.report import (
    Card,
    Picture,
    Report,
    Shown,
    Slide,
    Word,
    as_text,
    frame,
    read_report,
    shell_line,
)
from tokenprune.evaluate.report.folder import MANIFEST

PICTURE = Picture(data=b"\x89PNG", alt="a dot")
CARD = Card(title="c", picture=PICTURE, words=(Word(text="w", probability=0.5),))
WHOLE = Report(
    kind="analyze x",
    title="Größe",
    command="tokenprune analyze x",
    configuration={"a": [1, None, {"b": 0.5}]},
    findings=("One.", "Two."),
    shown=(Shown(title="t", columns=("a", "b\nc"), rows=(("1", "2"), ("3", "-")), note="n", strong=(1,)),),
    tables={"t": frame(["name", "value", "count"], [["a, b", 0.1 + 0.2, 3], ["ü", float("nan"), 4]])},
    figures={"f": b"figure"},
    images={"i.png": b"image"},
    galleries={
        "g": (Slide(title="s", cards=(Card(title="c", picture=PICTURE, words=(Word(text="w", probability=0.5),)),)),)
    },
    titles={"t.csv": "T", "g": "G"},
    notes={"f.png": "n", "g": "look"},
    conditions="here",
)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    page = WHOLE.write(tmp_path / "run")
    found = read_report(tmp_path / "run")
    for name in ("kind", "title", "command", "configuration", "findings", "shown", "figures", "images", "conditions"):
        assert getattr(found, name) == getattr(WHOLE, name), name
    slide = found.galleries["g"][0]
    assert (slide.title, slide.cards[0].words) == ("s", (Word(text="w", probability=0.5),))
    assert slide.cards[0].picture is not None
    assert slide.cards[0].picture.data == PICTURE.data
    assert found.tables["t"].to_numpy().tolist() == [["a, b", "0.30000000000000004", "3"], ["ü", "", "4"]]
    assert (found.title_of("t.csv"), found.title_of("f.png"), found.notes["g"]) == ("T", "F", "look")
    before = page.read_text()
    found.write(tmp_path / "run")
    assert page.read_text() == before  # the page of the folder is the page of the run
    again = read_report(tmp_path / "run")
    assert again.shown == found.shown


def test_a_folder_holds_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tokenprune.evaluate.report.folder.write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        WHOLE.write(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_files_outside_of_the_folder_are_not_written(tmp_path: Path) -> None:
    outside = Report(title="t", images={"../i.png": b"x"})
    with pytest.raises(ValueError, match="outside of the folder"):
        outside.write(tmp_path / "run")
    assert not (tmp_path / "i.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest_version": 99}, "version is 99, this program reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"tables": [{"name": "t.csv"}]}, "cannot be read"),
        ({"tables": [{"file": "t.csv", "title": "T", "note": "", "more": ""}]}, "cannot be read"),
        ({"tables": [{"file": "t.png", "title": "T", "note": ""}]}, r"must end in \.csv"),
        ({"figures": [{"file": "gone.png", "title": "T", "note": ""}]}, r"gone\.png"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    WHOLE.write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path)


def test_tables_with_other_rows_are_refused(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    (tmp_path / "t.csv").write_text("name,value,count\na,1\n")
    with pytest.raises(ValueError, match=r"t\.csv .*a row has 2 cells for 3 columns"):
        read_report(tmp_path)


def test_a_missing_or_broken_one_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a folder that tokenprune"):
        read_report(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="run the command again"):
        read_report(tmp_path)


def test_shown_rows_fit_their_columns() -> None:
    with pytest.raises(ValueError, match="needs 2 cells, one per column, got 1"):
        Shown(title="t", columns=("a", "b"), rows=(("1",),))


def test_the_command_survives_a_shell() -> None:
    words = ["compare", "--strategy", "mi_alignment(keep=0.8, text='question') >> greedy_repmax", "--out", "a b"]
    assert shlex.split(shell_line(words)) == ["tokenprune", *words]


def test_json_is_plain_and_complete() -> None:
    told = json.loads(as_text(WHOLE, folder=Path("runs/x")), parse_constant=lambda word: pytest.fail(word))
    assert told["tables"]["t"] == [
        {"name": "a, b", "value": 0.1 + 0.2, "count": 3},
        {"name": "ü", "value": None, "count": 4},
    ]
    assert (told["title"], told["findings"], told["folder"]) == ("Größe", ["One.", "Two."], "runs/x")
    odd = Report(title="t", configuration={"n": np.int64(3), "x": np.float32("inf"), "p": Path("a"), "b": np.True_})
    assert json.loads(as_text(odd))["configuration"] == {"n": 3, "x": None, "p": "a", "b": True}


def test_frames_keep_what_is_in_them() -> None:
    table = frame(["keep", "share", "n", "flag"], [[None, 0.5, 1, True], [64, None, 2, False], [0.111, 1.0, 3, True]])
    assert table["keep"].tolist() == [None, 64, 0.111]
    assert [str(kind) for kind in table.dtypes] == ["object", "float64", "int64", "bool"]


def printed(shown: Shown, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(Report(title="t", shown=(shown,), findings=("Found.",)))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("columns", [1, 3, 8, 20])
def test_no_number_is_cut_on_a_terminal(width: int, columns: int) -> None:
    rows = tuple(
        (
            f"trim_tokenator(keep=0.111, align={row})",
            *(f"{row}{place}.25 [{row}0.5, {row}{place}.75]" for place in range(columns)),
        )
        for row in range(1, 4)
    )
    shown = Shown(title="Wide", columns=("Strategy", *(f"column {place}" for place in range(columns))), rows=rows)
    text = printed(shown, width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        for cell in row[1:]:
            assert cell in text, cell  # whole, on one line
    for head in shown.columns[1:]:
        assert len(re.findall(rf"{head}(?!\d)", text)) == 1
    assert "Found." in text


def test_texts_from_outside_are_no_markup() -> None:
    shown = Shown(title="[bold]t[/bold]", columns=("a", "[red]b"), rows=(("[/x]", "1 [0, 2]"),))
    text = printed(shown, 80)
    for word in ("[bold]t[/bold]", "[red]b", "[/x]", "1 [0, 2]"):
        assert word in text


def test_a_notebook_gets_the_page_in_a_frame() -> None:
    text = WHOLE._repr_html_()
    assert text.startswith("<iframe srcdoc=")
    assert "<script>" not in text
    assert "Größe" in text
