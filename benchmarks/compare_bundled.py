"""The default comparison on the bundled model, and variants of the alignment stage at one budget.

Writes compare_bundled.csv and alignment_variants.csv (the results tables), compare_bundled.json (machine, versions,
commit, configuration) and the two figures into benchmarks/results/. The documentation reads these files.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tokenprune.cli.main import main as tokenprune

RESULTS = Path(__file__).parent / "results"

# What could stand in place of stage 1 as it is, each followed by the same stage 2.
VARIANTS = (
    "greedy_repmax",
    "trim_tokenator",
    "trim_tokenator(align=0.95)",
    "random(keep=0.8) >> greedy_repmax",
    "mi_alignment(keep=0.8, text='question') >> greedy_repmax",
    "mi_alignment(keep=0.8, metric='cosine') >> greedy_repmax",
    "mi_alignment(keep=0.8, metric='cosine', reduce='max', text='question') >> greedy_repmax",
    "mi_alignment(metric='cosine', reduce='max', text='question')",
)


def run(folder: Path, *options: str) -> Path:
    """One comparison into `folder`; its run folder."""
    if tokenprune(["compare", "--out", str(folder), *options]) != 0:
        raise RuntimeError("the comparison did not finish")
    return next(path for path in folder.iterdir() if (path / "run.json").is_file())


def main() -> int:
    """Run both comparisons and copy what is worth keeping."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        default = run(Path(name) / "default")
        shutil.copy(default / "results.csv", RESULTS / "compare_bundled.csv")
        shutil.copy(default / "accuracy_vs_tokens.png", RESULTS)
        with Image.open(default / "kept_tokens.png") as figure:  # photographs: a fifth of the bytes as JPEG
            figure.convert("RGB").save(RESULTS / "kept_tokens.jpg", quality=85, optimize=True)
        shutil.copy(default / "run.json", RESULTS / "compare_bundled.json")
        options = [word for text in VARIANTS for word in ("--strategy", text)]
        variants = run(Path(name) / "variants", "--keep", "0.111", *options)
        shutil.copy(variants / "results.csv", RESULTS / "alignment_variants.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
