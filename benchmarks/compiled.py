"""Decoding with a growing cache, a static one, and compiled: `python -m benchmarks.compiled`.

Adds rows at batch 1 to benchmarks/results/bench_model.csv. Where a C++ compiler is at hand Inductor compiles the steps,
else the graph is only captured (backend eager), which measures what capturing costs.
"""

import shutil
import sys

from benchmarks.speed import COMMON
from tokenprune.cli.main import main as tokenprune

SMALL = ["--config", "tiny", "--batch", "1", "--keep", "64", "--repeats", "5", "--no-sweep"]


def main() -> int:
    """Static, then static and compiled; the growing cache is part of `benchmarks.speed`."""
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    worst = 0
    for options in (["--static-cache"], ["--static-cache", "--compile", "inductor" if compiler else "eager"]):
        worst = max(worst, tokenprune(["bench", "model", *SMALL, *options, *COMMON]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
