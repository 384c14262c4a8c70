"""The baselines' cores against vectors of their authors' code, and the naive references against the same vectors.

How each core is called stands in `replay.py`. Without the vectors these tests are skipped; `test_references.py` then
still compares every core with its reference.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import references
from tests.parity.replay import REPLAYS, Case, Cores, folder, vectors

FILES = [(method, path) for method in REPLAYS for path in vectors(method)]

with_files = pytest.mark.parametrize(("method", "path"), FILES, ids=[path.stem for _, path in FILES])


def failures(method: str, path: Path, lib: Any) -> list[str]:
    checks = list(REPLAYS[method](Case(path), lib))
    assert checks, f"{path.name} holds no output that is compared"
    return [check.name for check in checks if not check.holds]


@with_files
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_core_reproduces_the_authors_code(method: str, path: Path, dtype: torch.dtype) -> None:
    assert failures(method, path, Cores(dtype)) == []


@with_files
def test_reference_reproduces_the_authors_code(method: str, path: Path) -> None:
    assert failures(method, path, references) == []


@pytest.mark.skipif(not folder().is_dir(), reason="no reference vectors here")
def test_every_file_is_replayed() -> None:
    strangers = [p.name for p in folder().glob("*.npz") if not any(p.name.startswith(f"{m}_") for m in REPLAYS)]
    assert strangers == []
