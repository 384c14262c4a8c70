"""Strategies of installed packages: found by name, listed, and refused when they claim a taken name."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULE = '''
import torch
from tokenprune import Choice, Keep, Stage, Tokens, strategy


@strategy("{name}")
class Corner(Stage):
    """Keeps the first tokens."""

    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)))
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


COMMANDS = """
import json, sys
from pathlib import Path
from tokenprune.bundled import load_scenes
from tokenprune.cli.main import main

load_scenes(count=1)[0].image.save("scene.png")
for command in (
    ["strategies", "--json"],
    ["select", "scene.png", "--question", "is there a seven ?", "--strategy", "corner(keep=9)", "--out", "kept.png"],
    ["compare", "--strategy", "corner", "--strategy", "random(keep=0.9) >> corner", "--keep", "9", "--seeds", "1",
     "--count", "2", "--batch-size", "2", "--out", "runs"],
    ["gap", "--synthetic", "clusters", "--size", "16", "--images", "1", "--keep", "4", "--distance", "cosine",
     "--strategy", "corner", "--out", "gap"],
    ["analyze", "diagnostics", "--strategy", "corner(keep=9)", "--strategy", "random(keep=9)", "--count", "2",
     "--out", "runs"],
    ["analyze", "spatial", "--strategy", "corner(keep=9)", "--count", "2", "--out", "runs"],
):
    status = main(command)
    print("STATUS", command[0], status)
    assert status == 0, command
"""


def test_a_package_s_strategy_passes_through_every_command(tmp_path: Path) -> None:
    package(tmp_path, "corner")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stdout.count("STATUS") == 6
    assert '"class": "third_party.Corner"' in done.stdout
    assert (tmp_path / "kept.png").is_file()
    (results,) = tmp_path.glob("runs/*/results.csv")
    compared = {row["method"]: row for row in csv.DictReader(results.read_text().splitlines())}
    assert compared["corner"]["tokens_kept"] == "9"
    assert "random(keep=0.9) >> corner" in compared
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "gap" / "gap.csv").read_text().splitlines())}
    assert 0 < float(rows["corner"]["value"]) <= float(rows["exact"]["value"])
    for name in ("diagnostics", "spatial"):
        tables = [path.read_text() for path in tmp_path.glob(f"runs/analyze-{name}/*.csv")]
        assert any("corner(keep=9)" in table for table in tables)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        (
            "random",
            "third_party:Corner",
            ["entry point 'corner'", "'random' belongs to tokenprune.baselines.random_subset.Random"],
        ),
        ("corner", "third_party:Missing", ["entry point 'corner'", "third_party:Missing", "failed to load"]),
        ("corner", "third_party:torch", ["entry point 'corner'", "is no strategy class"]),
    ],
)
def test_a_wrong_entry_point_is_named(tmp_path: Path, name: str, target: str, words: list[str]) -> None:
    package(tmp_path, name, target)
    done = run(tmp_path, "import tokenprune; tokenprune.strategies()")
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr
