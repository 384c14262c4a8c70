"""Strategies of installed packages: found by name, listed, and refused when they claim a taken name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from tokenprune import PruningStrategy, Selection, Tokens
from tokenprune.strategy import set_keep


@dataclass(frozen=True, repr=False)
class Corner(PruningStrategy):
    """Keeps the first tokens."""

    name: ClassVar[str] = "{name}"
    keep: int | float

    def __post_init__(self) -> None:
        set_keep(self)

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens)), total=tokens.n)
'''


def package(folder: Path, name: str, target: str = "third_party:Corner") -> None:
    """What installing a package with one entry point leaves in site-packages."""
    (folder / "third_party.py").write_text(MODULE.replace("{name}", name))
    info = folder / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tokenprune.strategies]\ncorner = {target}\n")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_package_brings_a_strategy_to_parse_pipelines_and_the_contract(tmp_path: Path) -> None:
    package(tmp_path, "corner")
    code = (
        "from tokenprune import parse, strategies\n"
        "from tokenprune.testing import check_strategy\n"
        "assert 'corner' in strategies()\n"
        "pipeline = parse('random(keep=0.9) >> corner(keep=3)')\n"
        "check_strategy(parse('Corner(keep=0.5)'))\n"
        "print(pipeline)\n"
        "from tokenprune.cli.main import main\n"
        "main(['strategies'])\n"
    )
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "random(keep=0.9) >> corner(keep=3)" in done.stdout
    assert "third_party.Corner" in done.stdout


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("random", "third_party:Corner", ["'random' belongs to tokenprune.baselines.random_subset.Random", "rename"]),
        ("corner", "third_party:Missing", ["entry point 'corner'", "third_party:Missing", "failed to load"]),
        ("corner", "third_party:torch", ["entry point 'corner'", "no concrete PruningStrategy"]),
    ],
)
def test_a_wrong_entry_point_is_named(tmp_path: Path, name: str, target: str, words: list[str]) -> None:
    package(tmp_path, name, target)
    done = run(tmp_path, "import tokenprune; tokenprune.strategies()")
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr
