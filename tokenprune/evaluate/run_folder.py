"""The run folder: one file per finished cell, so that a stopped comparison resumes where it was."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    Use `RunFolder.open`, which checks that the folder belongs to the configuration and can be written.

    Attributes:
        path: the folder.
        config: what the run depends on, as plain JSON values.
    """

    path: Path
    config: Mapping[str, Any]

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
            ValueError: when the folder cannot be written, space is short, or it belongs to another configuration.
        """
        full = {"schema_version": SCHEMA_VERSION, **config}
        path = parent / f"{name}-{config_hash(full)}"
        folder = cls(path, full)
        try:
            folder.cells.mkdir(parents=True, exist_ok=True)
            config_file = path / "config.json"
            if config_file.exists() and config_file.read_text(encoding="utf-8") != canonical(full):
                raise ValueError(
                    f"{config_file} is not the configuration that this folder is named after (changed by hand, or of "
                    "another schema version); move the folder away or choose another --out"
                )
            write_atomically(config_file, canonical(full).encode())
        except OSError as error:
            raise ValueError(
                f"cannot write the run folder {path}: {error.strerror or error}; choose another --out"
            ) from error
        free = shutil.disk_usage(path).free
        if free < need_bytes:
            raise ValueError(
                f"the run needs about {need_bytes / 2**20:.0f} MiB but {path} has {free / 2**20:.0f} MiB free; "
                "make room or choose another --out"
            )
        if fresh:
            for file in folder.cells.glob("*.json"):
                file.unlink()
        return folder

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
        file = self.cells / f"{cell_id}.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and run again") from None
        return dict(content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, such as run.json."""
        write_atomically(self.path / name, canonical(content).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty when it is not there.

        Raises:
            ValueError: when the file is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and run again") from None
