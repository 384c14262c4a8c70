"""Command line of the training: ``python -m benchmarks.bundled_model --out DIR --seed 0``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from benchmarks.bundled_model.recipe import train


def main(arguments: list[str] | None = None) -> None:
    """Train the bundled model from nothing, or go on where an interrupted run stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bundled_model", description=main.__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, log and result; reuse it to resume"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and data (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the committed weights used 1")
    parser.add_argument("--only", choices=("vision", "symbolic"), help="run these stages alone")
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.threads < 1:
        parser.error(f"--seed must be at least 0 and --threads at least 1, got {options.seed} and {options.threads}")
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.out, options.seed, only=options.only)


if __name__ == "__main__":
    main()
