"""Every public name has its place in the documentation, and every page is in the navigation."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "tokenprune",
    "tokenprune.repmax",
    "tokenprune.kernels",
    "tokenprune.models",
    "tokenprune.baselines",
    "tokenprune.analysis",
    "tokenprune.evaluate",
    "tokenprune.evaluate.cost",
    "tokenprune.bundled",
    "tokenprune.testing",
)
STUB = re.compile(r"^::: (\S+)", re.MULTILINE)


def documented() -> set[str]:
    """The last part of every name that an API page shows, so that re-exports count once."""
    return {
        name.rsplit(".", 1)[-1] for page in (ROOT / "docs").rglob("*.md") for name in STUB.findall(page.read_text())
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module: str) -> None:
    names = set(importlib.import_module(module).__all__)
    missing = sorted(names - documented())
    assert not missing, f"add `::: {module}.{missing[0]}` to a page under docs/api/ (missing: {missing})"


def test_every_stub_names_something_that_exists() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for name in STUB.findall(page.read_text()):
            owner, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(owner), attribute), f"{page.name}: {name}"


def test_every_public_name_has_a_docstring() -> None:
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            if callable(value):
                assert (value.__doc__ or "").strip(), f"{module}.{name}"
