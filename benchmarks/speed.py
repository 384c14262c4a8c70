"""Selection alone, and a small model dense against pruned, on this machine's CPU: `python -m benchmarks.speed`.

Writes bench_selection, bench_model and bench_break_even (.csv and .json each) into benchmarks/results/ by way of
`tokenprune bench`. The documentation reads these files. For other sizes, models and a GPU call the command itself.
"""

import sys
from pathlib import Path

from tokenprune.cli.main import main as tokenprune

RESULTS = Path(__file__).resolve().parent / "results"
COMMON = ["--device", "cpu", "--out", str(RESULTS), "--fresh"]


def main() -> int:
    """Both benchmarks; the exit status of the worse one."""
    worst = 0
    for options in (["selection", "--seconds", "1"], ["model", "--config", "tiny", "--repeats", "3"]):
        worst = max(worst, tokenprune(["bench", *options, *COMMON]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
