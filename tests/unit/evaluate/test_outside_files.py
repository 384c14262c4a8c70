"""Files of a run folder that were cut or changed: always a ValueError that names the file."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune.evaluate.cell_files import read_cells, read_sessions, read_vision
from tokenprune.evaluate.comparison import Comparison, compare
from tokenprune.evaluate.cost.results_file import ResultsFile
from tokenprune.evaluate.report import read_report, write_report
from tokenprune.evaluate.run_folder import RunFolder
from tokenprune.strict_json import parse_json, read_json_object

SAMPLES = tiny_samples(4)
READ = ("cells/000-dense.json", "vision.json", "run.json", "manifest.json", "kept_tokens.json", "results.csv")
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    loaded, out = tiny_loaded(), tmp_path_factory.mktemp("made")
    return compare(loaded, SAMPLES, tiny_settings(budgets=(2,)), data="tiny", out=out)


@pytest.fixture
def folder(made: Comparison, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "run"))


def read(folder: Path, name: str) -> None:
    """What a later command does with a file of a run folder."""
    run = RunFolder(folder, {})
    if name.startswith("cells/"):
        read_cells(run, [Path(name).stem], SAMPLES)
    elif name == "vision.json":
        read_vision(run)
    elif name == "run.json":
        read_sessions(run)
    else:
        write_report(folder)


def check(folder: Path, name: str, *, must_fail: bool = False) -> None:
    try:
        read(folder, name)
    except ValueError as error:
        assert Path(name).name in str(error), error  # noqa: PT017
    else:
        assert not must_fail


def test_an_untouched_folder_is_read(folder: Path) -> None:
    for name in READ:
        read(folder, name)


@pytest.mark.parametrize("name", READ)
@given(share=st.floats(0, 0.98))
@FUZZ
def test_cut_files(name: str, share: float, folder: Path, made: Comparison) -> None:
    data = (made.folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    check(folder, name, must_fail=name.endswith(".json"))


@pytest.mark.parametrize("name", READ)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=3)), min_size=1, max_size=5))
@FUZZ
def test_changed_bytes(name: str, changes: list[tuple[float, bytes]], folder: Path, made: Comparison) -> None:
    data = bytearray((made.folder / name).read_bytes())
    for share, new in changes:
        place = int(share * len(data))
        data[place : place + len(new)] = new
    (folder / name).write_bytes(data)
    check(folder, name)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value; of lists the first two entries."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, entry in entries:
        yield from places(entry, (*path, name))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at a place."""
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = put(changed[path[0]], path[1:], new)
    return changed


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


ODD: tuple[Any, ...] = (None, True, -1, 0, 2.5, 10**20, 10**299, "x", "", [], [[]], {}, {"a": None}, deep(400))


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".json")])
def test_every_value_replaced(name: str, folder: Path) -> None:
    content = json.loads((folder / name).read_text())
    for place in places(content):
        if place[:1] == ("configuration",) and place[1:2] not in ((), ("git",), ("versions",)):
            continue  # printed as it is, whatever it is
        for new in ODD:
            (folder / name).write_text(json.dumps(put(content, place, new)))
            check(folder, name)
        if place and isinstance(place[-1], str):
            less = content
            for step in place[:-1]:
                less = less[step]
            without = {key: value for key, value in less.items() if key != place[-1]}
            (folder / name).write_text(json.dumps(put(content, place[:-1], without)))
            check(folder, name)


@pytest.mark.parametrize("name", ["cells/000-dense.json", "vision.json", "run.json", "config.json"])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a": 1, "a": 2}', b"[]", b"3", b"9" * 5000]
)
def test_a_comparison_finds_damage_before_it_runs(name: str, data: bytes, made: Comparison, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / made.folder.name)
    (tmp_path / made.folder.name / name).write_bytes(data)

    class Watched:
        def start(self, total: float, done: float) -> None:
            raise AssertionError("the model ran")

        def advance(self, amount: float, what: str) -> None:
            raise AssertionError("the model ran")

    chosen = tiny_settings(budgets=(2,))
    with pytest.raises(ValueError, match=Path(name).name):
        compare(tiny_loaded(), SAMPLES, chosen, data="tiny", out=tmp_path, figures=False, progress=Watched())


CELL_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another sample": lambda cell: cell["samples"][0].update(id="q1"),
    "one less": lambda cell: cell["samples"].pop(),
    "of another cell": lambda cell: cell.update(cell="001"),
    "index too large": lambda cell: cell["samples"][0]["images"][0].update(indices=[16]),
    "no image": lambda cell: cell["samples"][0].update(images=[]),
    "endless": lambda cell: cell["batches"][0].update(prefill=1e300),
    "no samples in a batch": lambda cell: cell["batches"][0].update(samples=0),
}


@pytest.mark.parametrize("kind", CELL_CHANGES)
def test_cells_that_do_not_belong_to_the_data_set(kind: str, folder: Path) -> None:
    file = folder / "cells" / "000-dense.json"
    content = json.loads(file.read_text())
    CELL_CHANGES[kind](content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"000-dense\.json is damaged \(.*\); delete it and run again"):
        read_cells(RunFolder(folder, {}), ["000-dense"], SAMPLES)
    (folder / "cells" / "other.json").write_text("{")
    assert read_cells(RunFolder(folder, {}), [], SAMPLES) == {}


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "link.png"])
def test_a_report_shows_no_files_from_elsewhere(name: str, folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.png").symlink_to(folder.parent / "secret.txt")
    manifest = json.loads((folder / "manifest.json").read_text())
    for kind in ("tables", "figures", "images", "galleries"):
        item = {"file": name, "title": "t", "note": ""}
        (folder / "manifest.json").write_text(json.dumps({**manifest, kind: [item]}))
        with pytest.raises(ValueError, match=r"manifest\.json cannot be read .*lies outside of the folder"):
            write_report(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    slides = json.loads((folder / "kept_tokens.json").read_text())
    slides["slides"][0]["cards"][0]["picture"] = name
    (folder / "kept_tokens.json").write_text(json.dumps(slides))
    with pytest.raises(ValueError, match=r"kept_tokens\.json cannot be read .*lies outside of the folder"):
        write_report(folder)


def test_what_a_manifest_shows_twice_is_what_it_says(folder: Path) -> None:
    read_report(folder)
    for git in ({"commit": 3, "changed": False}, {"commit": "a"}, ["a"]):
        content = json.loads((folder / "manifest.json").read_text())
        content["configuration"]["git"] = git
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"manifest\.json cannot be read .*configuration"):
            read_report(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "is damaged"),
        (b'a,b\n"1,2\n', "is damaged"),
        (b"a,b\n1,2,3\n", "rows do not fit its columns"),
        (b"a,b\n1\n", "rows do not fit its columns"),
        (b"a,a,b\n1,2,3\n", "rows do not fit its columns"),
        (b"b,c\n1,2\n", "no column 'a'"),
        (b"a,b\n" + b"x" * 200_000 + b",1\n", "is damaged"),
        (b"a,b\n1,\0\n", None),
    ],
)
def test_benchmark_files(data: bytes, message: str | None, tmp_path: Path) -> None:
    file = tmp_path / "bench.csv"
    file.write_bytes(data)
    if message is None:
        ResultsFile(file, ["a"]).close()
        return
    with pytest.raises(ValueError, match=rf"bench\.csv .*{message}.*; move it away or choose another --out"):
        ResultsFile(file, ["a"])
    assert file.read_bytes() == data


def test_json_is_read_strictly(tmp_path: Path) -> None:
    assert parse_json('{"a": [1, -2.5e3, true, null, "ü"]}') == {"a": [1, -2500.0, True, None, "ü"]}
    for text in ("NaN", "1e400", '{"a": 1, "a": 1}', "[" * 10**5, "1" * 301, '"\\udfff"', '["a" "b"]', ""):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        read_json_object(tmp_path / "nowhere.json")
