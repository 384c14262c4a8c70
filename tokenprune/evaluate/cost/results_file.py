"""A CSV file that grows row by row: an interrupted benchmark keeps what it has, and goes on from there."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenprune.evaluate.environment import (
    device_name,
    git_state,
    load_average,
    package_versions,
    source_digest,
    usable_cores,
)
from tokenprune.evaluate.lock import Lock
from tokenprune.evaluate.run_folder import write_atomically

Row = dict[str, Any]


class ResultsFile:
    """Rows of one benchmark, told apart by some of their columns.

    Beside `name.csv` stands `name.json`: machine, versions, commit. Every row carries the first digits of the commit
    and of the digest of the package's source; rows measured by other code are never taken over. Until `close`, or the
    end of the process, no other process can use the file.

    Args:
        path: of the CSV file; its folder is made when missing.
        keys: columns that say what was measured, as against what was found.
        fresh: find only rows that are added from now on; others stay in the file until they are measured again.

    Raises:
        ValueError: when the file cannot be read or written, holds something else than such rows, or another process
            uses it.
    """

    def __init__(self, path: Path, keys: Sequence[str], *, fresh: bool = False) -> None:
        self.path = path
        self.keys = tuple(keys)
        self.stamp = {"code": source_digest()[:12], "commit": _commit()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(path.with_name(f".{path.name}.lock"), what=path)
            self.rows: list[Row] = read_rows(path, self.keys) if path.is_file() else []
            self._old = len(self.rows) if fresh else 0
            self._write()
        except OSError as error:
            raise ValueError(f"cannot use {path}: {error.strerror or error}; choose another --out") from error

    def find(self, **wanted: object) -> Row | None:
        """A row of this code with these values, which may be given as numbers or as the file's text."""
        for row in self.rows[self._old :]:
            if row.get("code") == self.stamp["code"] and all(
                str(row.get(k, "")) == _text(v) for k, v in wanted.items()
            ):
                return row
        return None

    def add(self, row: Mapping[str, Any]) -> Row:
        """Add or replace a row, and write the file."""
        new = {name: _text(value) for name, value in {**row, **self.stamp}.items()}
        same = {name: new.get(name, "") for name in self.keys}
        stay = [{name: old.get(name, "") for name in self.keys} != same for old in self.rows]
        self._old = sum(stay[: self._old])
        self.rows = [old for old, stays in zip(self.rows, stay, strict=True) if stays]
        self.rows.append(new)
        self._write()
        return new

    def keep(self, places: Sequence[Mapping[str, object]]) -> list[Row]:
        """The rows of a benchmark in its own order, those of other code or another benchmark left out."""
        return [row for place in places if (row := self.find(**place)) is not None]

    def note(self, device: str, **facts: Any) -> None:  # noqa: ANN401
        """Write machine, versions and commit into the JSON file."""
        content = {
            "machine": device_name(device),
            "host": device_name("cpu"),
            "cores": usable_cores(),
            "load_average": load_average(),
            "versions": package_versions(),
            "git": git_state(),
            **facts,
        }
        write_atomically(self.path.with_suffix(".json"), (json.dumps(content, indent=2) + "\n").encode())

    def close(self) -> None:
        """Let other processes use the file."""
        self._lock.release()

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
        if columns:
            writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, out.getvalue().encode())


def read_rows(path: Path, keys: Sequence[str] = ()) -> list[Row]:
    """Read the rows of a CSV file, values as text.

    Args:
        path: of the file.
        keys: columns that it must have, unless it is empty.

    Raises:
        ValueError: names the file when it is no CSV file with these columns.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        rows = list(reader)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}); move it away or choose another --out") from None
    columns = list(reader.fieldnames or [])
    missing = [name for name in keys if columns and name not in columns]
    # Cells beyond the columns are under the name None, cells that lack have the value None.
    ragged = any(None in row or None in row.values() for row in rows)
    if missing or ragged or len(set(columns)) != len(columns):
        reason = f"it has no column {missing[0]!r}" if missing else "its rows do not fit its columns"
        raise ValueError(f"{path} holds no such measurements ({reason}); move it away or choose another --out")
    return rows


def _commit() -> str:
    state = git_state()
    return "" if state is None else f"{str(state['commit'])[:10]}{'+' if state['changed'] else ''}"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
