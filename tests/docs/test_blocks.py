"""Every command and every Python block of the README and the documentation is executed."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenprune.core import registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)

# Shown for reading, not for running; each kind has its own test below or elsewhere.
SHOWN = {"text", "json", "toml", "bibtex", "jsonl"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, dedented; `:::` stubs and prose are left out."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language = match["info"].split()[0] if match["info"].split() else ""
        indent = len(match["indent"])
        code = "\n".join(line[indent:] for line in match["body"].splitlines()) + "\n"
        found.append(Block(page, text[: match.start()].count("\n") + 1, language, code))
    return found


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_has_a_language_that_is_tested(page: Path) -> None:
    for block in blocks(page):
        assert block.language in {"python", "bash"} | SHOWN, (
            f"{_name(page)}:{block.line} has language {block.language!r}"
        )


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=_name)
def test_python_blocks_run_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("benchmarks", "docs"):  # pages read their numbers and the names of other pages from there
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(registry, "_registered", {})  # what a page registers is forgotten after it
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(page):
        if block.language == "python":
            # Compiled with the page's own line numbers, so that a failure points at the page.
            source = "\n" * block.line + block.code
            exec(compile(source, str(page), "exec"), namespace)


def commands(page: Path) -> list[str]:
    """Every line of every bash block of a page, in order."""
    code = "".join(block.code for block in blocks(page) if block.language == "bash")
    return [line for line in code.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


# Too long for a test or needing a network; each is covered as said.
ELSEWHERE = {
    "make demo": "runs `tokenprune compare`, which tests/unit/cli runs on fewer questions",
    "make test": "this very run",
    "make check": "continuous integration runs it beside the tests",
    "make docs": "part of make check",
    "make bench": "tests/unit/cli runs the commands that it consists of on smaller problems",
    "make bench-all": "each benchmark has its own test or is run by hand; the results name their commit",
    "make gpu": "needs a GPU",
    "tokenprune compare": "tests/unit/cli runs it on fewer questions",
    "tokenprune analyze alignment": "tests/unit/cli runs it, and those below, on fewer images",
    "tokenprune analyze cases": "as above",
    "tokenprune analyze damage": "as above",
    "tokenprune analyze redundancy": "as above",
}


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=_name)
def test_commands_run_one_after_another(page: Path, tmp_path: Path) -> None:
    for name in ("tokenprune", "baselines", "analysis", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in commands(page):
        words = shlex.split(command, comments=True)
        if " ".join(words) in ELSEWHERE:
            if words[0] == "make":  # at least the target exists and make can plan it
                subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
            continue
        assert words[0] in ("tokenprune", "python"), f"{_name(page)}: how is {command!r} tested?"
        module = ["-m", "tokenprune"] if words[0] == "tokenprune" else []
        done = subprocess.run(
            [sys.executable, *module, *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
