"""The alignment analysis on the bundled model: does stage 1 read the question, and what does it drop?

Writes analyze_alignment.csv and alignment.png into benchmarks/results/.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tokenprune.cli.main import main as tokenprune

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the analysis on 200 scenes and copy table and figure."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        if tokenprune(["analyze", "alignment", "--count", "200", "--out", name]) != 0:
            raise RuntimeError("the analysis did not finish")
        folder = next(Path(name).iterdir())
        shutil.copy(folder / "alignment.csv", RESULTS / "analyze_alignment.csv")
        shutil.copy(folder / "alignment.png", RESULTS / "alignment.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
