"""`python -m benchmarks`: run every benchmark; each writes its files under benchmarks/results/."""

import argparse
import importlib
import sys
import time

# In the order in which they run; each module has `main() -> int`: 0 done, 2 its input is not here.
BENCHMARKS = {
    "speed": "benchmarks.speed",
    "profile": "benchmarks.compare_profile",
    "compiled": "benchmarks.compiled",
    "compare": "benchmarks.compare_bundled",
    "methods": "benchmarks.compare_methods",
    "analyses": "benchmarks.analyze_bundled",
    "parity": "benchmarks.parity_table",
    "repmax": "benchmarks.repmax",
    "selection": "benchmarks.selection",
    "reproducible": "benchmarks.reproducible",
}


MISSING = 2


def main(argv: list[str] | None = None) -> int:
    """Run all benchmarks, or those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    worst = 0
    for name in names:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        status = importlib.import_module(BENCHMARKS[name]).main()
        worst = max(worst, 0 if status == MISSING else status)
        outcome = "not run" if status == MISSING else f"{time.perf_counter() - start:.0f} s"
        print(f"== {name}: {outcome}\n", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
