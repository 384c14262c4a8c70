"""Parity of the baselines with their authors' code: `python -m benchmarks.parity_table` from the repository's root.

Replays every reference vector that is there (see `tests/parity/replay.py`) through this project's cores in float32 and
in float64 and writes benchmarks/results/parity.csv: a file counts as reproduced when every output stored in it is,
indices exactly and features within the tolerance of the vector's description.
"""

import csv
import sys
from pathlib import Path

import torch

from tests.parity.replay import REPLAYS, Case, Cores, folder, vectors

RESULT = Path(__file__).resolve().parent / "results" / "parity.csv"
COLUMNS = ("method", "vectors", "exact_float32", "exact_float64", "outputs_compared", "outputs_that_differ")


def rows() -> list[dict[str, object]]:
    """One row per method: how many vectors, how many are reproduced, which outputs are not."""
    table: list[dict[str, object]] = []
    for method, replay in REPLAYS.items():
        exact, compared, differ = {torch.float32: 0, torch.float64: 0}, 0, set[str]()
        paths = vectors(method)
        for path in paths:
            for dtype in exact:
                checks = list(replay(Case(path), Cores(dtype)))
                wrong = {f"{path.stem}:{check.name}" for check in checks if not check.holds}
                exact[dtype] += not wrong
                differ |= wrong
            compared += len(checks)
        numbers = (len(paths), exact[torch.float32], exact[torch.float64], compared, " ".join(sorted(differ)))
        table.append(dict(zip(COLUMNS, (method, *numbers), strict=True)))
    return table


def main() -> int:
    """Print and write the table; the exit status says whether every vector is reproduced."""
    if not folder().is_dir():
        print(f"no reference vectors in {folder().name}; set TOKENPRUNE_SHARED to the folder that holds them")
        return 2
    table = rows()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print("{method:24} {vectors:3} vectors, {exact_float32:3} exact {outputs_that_differ}".format(**row))
    total, good = (sum(int(str(row[key])) for row in table) for key in ("vectors", "exact_float32"))
    print(f"{good} of {total} reproduced in float32")
    return int(any(row["outputs_that_differ"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
