"""Locks on what a command writes: a second process is told who is at work, instead of mixing its rows in."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


class Lock:
    """A lock that one process holds until `release`, or until it ends in any way.

    The system's own file locks do it (through `filelock`), so that nothing is left locked after a crash. The same
    process may take a lock several times; it is free when each of them is released.

    Args:
        path: the lock's file, beside which `<path>.json` says who holds it. Both stay when the lock is released.
        what: what is locked, for the message.

    Raises:
        ValueError: when another process holds it; says which one, on what machine, since when.
        OSError: when the file cannot be made.
    """

    def __init__(self, path: Path, *, what: Path) -> None:
        # One object for each path in a process: the second one would wait for the first without an end.
        lock = FileLock(path, timeout=0, thread_local=False, is_singleton=True)
        note = path.with_name(f"{path.name}.json")
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{what} is in use by {_holder(note)}; wait until it has ended, or choose another --out"
            ) from None
        self._lock: BaseFileLock | None = lock
        with suppress(OSError):  # only the message of a second process depends on it
            note.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": _now()}))

    def release(self) -> None:
        """Let others take it; once is enough for this object."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


@contextmanager
def locked(folder: Path, *, inside: bool = False) -> Iterator[None]:
    """Make a folder and hold its lock.

    Args:
        folder: what is locked.
        inside: whether the lock's file is in the folder, as that of a `RunFolder`; else it is beside it, so that the
            folder holds results alone.

    Raises:
        ValueError: when another process holds it.
        OSError: when the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    lock = Lock(folder / ".lock" if inside else place.with_name(f".{place.name}.lock"), what=folder)
    try:
        yield
    finally:
        lock.release()


def _holder(note: Path) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return f"process {int(found['process'])} on {found['host']!s:.80} since {found['since']!s:.40}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
