"""What works with which family, written down from the tests: `python -m tests.compatibility` with each transformers.

Runs every check of tests/models/family_calls.py and puts the outcomes for the installed release of transformers into
benchmarks/results/compatibility.json, beside those of other releases. docs/compatibility.md shows the file.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "compatibility.json"


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def measure(families: Sequence[str]) -> dict[str, Any]:
    """Outcomes of every check for some families."""
    import torch
    import transformers

    from tests.models.family_calls import CALLS, outcome
    from tests.models.family_oracle import tiny
    from tokenprune import __version__
    from tokenprune.evaluate.environment import source_digest
    from tokenprune.models import adapter_for

    start = time.perf_counter()
    found: dict[str, Any] = {}
    for family in families:
        model, _ = tiny(family)
        adapter = adapter_for(model)
        results = {
            name: {backend: outcome(name, family, backend) for backend in backends}
            for name, (_, backends) in CALLS.items()
        }
        for name, cells in results.items():
            for backend, (status, detail) in cells.items():
                say(f"{family:16} {name:46} {backend:6} {status} {detail}")
        found[family] = {
            "model": type(model).__name__,
            "adapter": type(adapter).__name__,
            "sites": sorted(adapter.sites),
            "signals": sorted(adapter.signals),
            "missing": dict(adapter.reasons),
            "results": results,
        }
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tokenprune": __version__,
        "python": platform.python_version(),
        "source": source_digest(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - start),
        "families": found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the file."""
    from tokenprune.testing import tiny_families

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=tiny_families(), help="measure these again only")
    args = parser.parse_args(argv)
    run = measure(args.family or tiny_families())
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else {}
    before = runs.get(run["transformers"])
    if args.family and before is not None:
        run["families"] = {**before["families"], **run["families"]}
    runs[run["transformers"]] = run
    RESULTS.write_text(json.dumps({"runs": dict(sorted(runs.items()))}, indent=1) + "\n")
    cells = [
        cell
        for family in run["families"].values()
        for backends in family["results"].values()
        for cell in backends.values()
    ]
    failed = sum(cell[0] == "failed" for cell in cells)
    say(f"{len(cells)} checks on {len(run['families'])} families in {run['seconds']} s, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
