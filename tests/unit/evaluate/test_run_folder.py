import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tokenprune.evaluate.run_folder import RunFolder, config_hash, write_atomically

CONFIG = {"a": 1, "b": [0.5, 2]}


def test_same_configuration_same_folder_whatever_the_order_of_keys(tmp_path: Path) -> None:
    first = RunFolder.open(tmp_path, "x", CONFIG)
    second = RunFolder.open(tmp_path, "x", dict(reversed(CONFIG.items())))
    assert first.path == second.path
    assert RunFolder.open(tmp_path, "x", {**CONFIG, "a": 2}).path != first.path
    assert json.loads((first.path / "config.json").read_text())["schema_version"] == 1


def test_another_schema_version_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder.open(tmp_path, "x", CONFIG)
    monkeypatch.setattr("tokenprune.evaluate.run_folder.SCHEMA_VERSION", 2)
    assert RunFolder.open(tmp_path, "x", CONFIG).path != first.path


def test_a_changed_configuration_file_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, "x", CONFIG)
    (folder.path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is not the configuration that this folder is named after"):
        RunFolder.open(tmp_path, "x", CONFIG)


def test_cells_come_back_and_damage_is_named(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, "x", CONFIG)
    assert not folder.has_cell("000-dense")
    folder.write_cell("000-dense", {"samples": ["ä"]})
    assert folder.has_cell("000-dense")
    assert folder.read_cell("000-dense") == {"samples": ["ä"]}
    (folder.cells / "000-dense.json").write_text("{")
    with pytest.raises(ValueError, match=r"000-dense\.json is damaged .* delete it and run again"):
        folder.read_cell("000-dense")


def test_fresh_removes_cells_only(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, "x", CONFIG)
    folder.write_cell("000-dense", {})
    (folder.path / "notes.txt").write_text("mine")
    RunFolder.open(tmp_path, "x", CONFIG, fresh=True)
    assert not folder.has_cell("000-dense")
    assert (folder.path / "notes.txt").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_an_error_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the run folder .*file.* choose another --out"):
        RunFolder.open(tmp_path / "file", "x", CONFIG)


def test_a_full_disk_is_an_error_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    def usage(_: Any) -> Usage:
        return Usage(free=2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ValueError, match=r"needs about 5 MiB but .* has 1 MiB free; make room or choose another --out"):
        RunFolder.open(tmp_path, "x", CONFIG, need_bytes=5 * 2**20)


def test_hash_is_stable() -> None:
    # Written down: a change of the canonical form would silently orphan every run folder.
    assert config_hash({"a": 1, "b": "ä"}) == "1939b94dca"
