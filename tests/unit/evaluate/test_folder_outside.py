"""Data sets from somewhere else: whatever a line holds, the error names the file and the line, or all of it is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.test_folder import GOOD, write
from tests.unit.evaluate.tiny import tiny_image
from tokenprune.cli.main import main
from tokenprune.evaluate.folder import read_folder
from tokenprune.evaluate.samples import Sample

GOOD_LINE = json.dumps({**GOOD, "id": "0"})


def changed(text: str) -> str:
    """The good line with one value replaced by a JSON text that Python's writer would not write."""
    return json.dumps(GOOD).replace('"what?"', text)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A data set beside a picture that does not belong to it."""
    tiny_image(3).save(tmp_path / "secret.png")
    return write(tmp_path / "data")


def use(folder: Path, name: str) -> Path:
    (folder / "data.jsonl").write_text(GOOD_LINE + "\n" + json.dumps({**GOOD, "image": name}))
    return folder


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "linked folder", "down and up", "own folder, absolute"])
def test_images_outside_of_the_folder_need_permission(kind: str, outside: Path) -> None:
    (outside / "sub").mkdir()
    (outside / "link.png").symlink_to(outside.parent / "secret.png")
    (outside / "up").symlink_to(outside.parent, target_is_directory=True)
    names = {
        "parent": "../secret.png",
        "absolute": str(outside.parent / "secret.png"),
        "link": "link.png",
        "linked folder": "up/secret.png",
        "down and up": "sub/../../secret.png",
        "own folder, absolute": str(outside / "0.png"),
    }
    folder = use(outside, names[kind])
    with pytest.raises(
        ValueError, match=r"data\.jsonl, line 2: the image .* lies outside of the folder .*--allow-outside"
    ):
        read_folder(folder)
    assert len(read_folder(folder, allow_outside=True)) == 2


def test_what_stays_inside_is_read(outside: Path) -> None:
    (outside / "sub").mkdir()
    tiny_image(1).save(outside / "sub" / "a.png")
    (outside / "link.png").symlink_to(outside / "sub" / "a.png")
    for name in ("sub/a.png", "./sub/../0.png", "link.png"):
        assert len(read_folder(use(outside, name))) == 2
    door = outside.parent / "door"  # the folder itself may be reached through a link
    door.symlink_to(outside, target_is_directory=True)
    assert len(read_folder(door)) == 2


def test_the_command_line_has_the_same_option(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(outside, "../secret.png")
    for command in (["compare"], ["analyze", "damage"], ["analyze", "spatial"]):
        # A model that does not exist: the data are read before any model is looked for.
        argv = [*command, "--data", str(outside), "--model", str(outside / "no model"), "--out", str(outside / "runs")]
        assert main(argv) == 2
        assert "lies outside of the folder" in capsys.readouterr().err
        assert main([*argv, "--allow-outside"]) == 2
        assert "lies outside" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (changed("[" * 100_000 + "]" * 100_000), "nested too deeply"),
        (changed('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
        (changed("9" * 5000), "the number '9999.* is too large"),
        (changed("1" * 400), "the number '1111.* is too large"),
        (changed("1e999"), "the number '1e999' is too large"),
        (changed("NaN"), "NaN is no JSON number"),
        (changed("-Infinity"), "-Infinity is no JSON number"),
        (changed('"a", "question": "b"'), "the name 'question' occurs twice in one object"),
        (changed('{"x": 1, "x": 2}'), "the name 'x' occurs twice in one object"),
        (changed('"\\ud800"'), "half of a surrogate pair"),
        (
            changed('"what is in <image>?"'),
            "the question holds '<image>', at which processors put an image; .*take it out",
        ),
        (changed('"<|image_pad|> what?"'), "the question holds"),
        (json.dumps([GOOD]), "must be a JSON object .* got list; write one object per line"),
        ("[", r"no valid JSON: .*; write one object per line"),
        ("{", r"no valid JSON: .*; write one object per line"),
        (json.dumps({**GOOD, "image": "a\0b.png"}), "the image "),
        (json.dumps({**GOOD, "image": "a" * 5000}), "the image "),
        (json.dumps({**GOOD, "image": "https://example.org/a.png"}), "the image .* does not exist"),
        (json.dumps({**GOOD, "image": "."}), "the image .* does not exist"),
    ],
)
def test_odd_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD_LINE, line)
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: {message}|data\.jsonl, line 2: .*{message}") as caught:
        read_folder(folder)
    assert len(str(caught.value)) < 2000


def test_an_image_whose_links_go_in_a_circle(outside: Path) -> None:
    (outside / "a.png").symlink_to(outside / "b.png")
    (outside / "b.png").symlink_to(outside / "a.png")
    with pytest.raises(ValueError, match=r"line 2: the image .*a\.png"):
        read_folder(use(outside, "a.png"))


def test_a_single_file_as_data(tmp_path: Path) -> None:
    for name, content in (("data.json", json.dumps([GOOD])), ("0.png", "x"), ("data.csv", "id,image")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} is a single file; a data set is a folder with data\.jsonl"):
            read_folder(tmp_path / name)
    (tmp_path / "data.jsonl").write_text(json.dumps([GOOD], indent=1))
    with pytest.raises(ValueError, match=r"data\.jsonl, line 1: .*write one object per line"):
        read_folder(tmp_path)


def test_a_placeholder_is_refused_for_samples_made_in_python_too() -> None:
    with pytest.raises(ValueError, match="Sample 'a': the question holds '<image>'"):
        Sample(id="a", images=(tiny_image(0),), question="<image>\nwhat?", answers=("x",))
    Sample(id="a", images=(tiny_image(0),), question="is <b> a tag, and <imagery> a word?", answers=("x",))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(changes=st.dictionaries(st.sampled_from([*GOOD, "images", "answers", "kind", "x"]), JSON, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_values_give_samples_or_an_error_with_file_and_line(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path, {**GOOD, **changes})
    try:
        (sample,) = read_folder(folder)
    except ValueError as error:
        assert "data.jsonl, line 1" in str(error)  # noqa: PT017
    else:
        assert sample.question.strip()


@given(data=st.binary(max_size=60), place=st.integers(0, 60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_bytes_give_samples_or_an_error_with_the_file(data: bytes, place: int, tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    good = json.dumps(GOOD).encode()
    (folder / "data.jsonl").write_bytes(good[:place] + data + good[place:])
    try:
        read_folder(folder)
    except ValueError as error:
        assert "data.jsonl" in str(error)  # noqa: PT017
