"""The run folder: one file per finished cell, so that a stopped comparison resumes where it was."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tokenprune.evaluate.lock import Lock
from tokenprune.strict_json import read_json_object

SCHEMA_VERSION = 1
"""Raised whenever a file in the run folder changes its form; part of the folder's name, so forms never mix."""


def canonical(config: Mapping[str, Any]) -> str:
    """The configuration as JSON with sorted keys: equal configurations give equal texts."""
    return json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that name a configuration.

    Examples:
        >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})
        True
    """
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:10]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there complete or not at all, also after a crash or a full disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class RunFolder:
    """A folder `<parent>/<name>-<hash of the configuration>`.

    Use `RunFolder.open`, which checks that the folder belongs to the configuration and can be written, and locks it
    until `close` or the end of a `with` block.

    Attributes:
        path: the folder.
        config: what the run depends on, as plain JSON values.
        lock: keeps other processes out; None for a folder that is only read.
    """

    path: Path
    config: Mapping[str, Any]
    lock: Lock | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, parent: Path, name: str, config: Mapping[str, Any], *, fresh: bool = False, need_bytes: int = 0
    ) -> "RunFolder":
        """Find or make the folder of a configuration.

        Args:
            parent: where run folders live; made when missing.
            name: what the folder's name starts with.
            config: everything that the numbers depend on; the schema version is added here.
            fresh: throw the finished cells of an earlier run away.
            need_bytes: how much the run is about to write; less free space is an error now, not later.

        Raises:
            ValueError: when the folder cannot be written, space is short, it belongs to another configuration, or
                another process is at work in it.
        """
        full = {"schema_version": SCHEMA_VERSION, **config}
        path = parent / f"{name}-{config_hash(full)}"
        lock = None
        try:
            (path / "cells").mkdir(parents=True, exist_ok=True)
            lock = Lock(path / ".lock", what=path)
            folder = cls(path, full, lock)
            folder._begin(fresh=fresh, need_bytes=need_bytes)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, OSError):
                raise ValueError(
                    f"cannot write the run folder {path}: {error.strerror or error}; choose another --out"
                ) from error
            raise
        return folder

    def _begin(self, *, fresh: bool, need_bytes: int) -> None:
        """Check and write the configuration, check the free space, throw old cells away."""
        config_file, content = self.path / "config.json", canonical(self.config).encode()
        if config_file.exists() and config_file.read_bytes() != content:
            raise ValueError(
                f"{config_file} is not the configuration that this folder is named after (changed by hand, or of "
                "another schema version); move the folder away or choose another --out"
            )
        write_atomically(config_file, content)
        free = shutil.disk_usage(self.path).free
        if free < need_bytes:
            raise ValueError(
                f"the run needs about {need_bytes / 2**20:.0f} MiB but {self.path} has {free / 2**20:.0f} MiB free; "
                "make room or choose another --out"
            )
        if fresh:
            for file in self.cells.glob("*.json"):
                file.unlink()

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def cells(self) -> Path:
        """Where the finished cells are."""
        return self.path / "cells"

    def has_cell(self, cell_id: str) -> bool:
        """True when the cell is finished."""
        return (self.cells / f"{cell_id}.json").is_file()

    def write_cell(self, cell_id: str, content: Mapping[str, Any]) -> None:
        """Store a finished cell."""
        data = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        write_atomically(self.cells / f"{cell_id}.json", data.encode())

    def read_cell(self, cell_id: str) -> dict[str, Any]:
        """A finished cell.

        Raises:
            ValueError: when its file is damaged.
        """
        return _read(self.cells / f"{cell_id}.json")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, such as run.json."""
        write_atomically(self.path / name, canonical(content).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty when it is not there.

        Raises:
            ValueError: when the file is damaged.
        """
        file = self.path / name
        return _read(file) if file.is_file() else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file)
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run again") from None


def slug(text: str) -> str:
    """Turn a text into a part of a file name: letters, digits, dots and lines, at most 48.

    Examples:
        >>> slug("trim_tokenator(keep=64)"), slug("..")
        ('trim_tokenator-keep-64', 'run')
    """
    kept = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in text)
    return "-".join(filter(None, kept.split("-")))[:48].strip("-.") or "run"
