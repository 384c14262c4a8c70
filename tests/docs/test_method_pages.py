"""The methods' pages: the same headings on each, and facts that come from the classes."""

import re
from pathlib import Path

import pytest

from tokenprune.core.registry import builtin

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for page in (ROOT / "docs" / "methods").glob("*.md") if page.name != "index.md")
HEADINGS = ["Idea", "Definition", "Needs", "Cost", "Deviations", "Example", "API", "Citation"]
FACTS = re.compile(r"fact_table\(([^)]*)\)")


def described(page: Path) -> list[str]:
    """Names of the strategies whose facts a page prints."""
    return [name for names in FACTS.findall(page.read_text()) for name in re.findall(r'"(\w+)"', names)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_the_same_headings(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_says_what_it_is_about_and_draws_what_is_kept(page: Path) -> None:
    assert described(page), f"{page.name}: print fact_table(...) under Needs"
    assert "draw_record(" in page.read_text(), f"{page.name}: draw what the example kept"


def test_every_strategy_is_described_once() -> None:
    names = [name for page in PAGES for name in described(page)]
    assert len(names) == len(set(names))
    missing = sorted(set(builtin()) - set(names))
    assert not missing, f"print fact_table({missing[0]!r}) under Needs of a page under docs/methods/"
