"""Entry point of the command line; a subcommand is a module with `add_parser(subparsers)` and `run(args) -> int`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from tokenprune import __version__

COMMANDS = ("compare", "select", "strategies", "gap", "analyze", "bench", "doctor")
"""Modules of this package, in the order in which help lists them."""
USER_ERROR = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand that is there."""
    parser = argparse.ArgumentParser(
        prog="tokenprune", description="Compare and inspect visual-token pruning strategies for LLaVA-like models."
    )
    parser.add_argument("--version", action="version", version=f"tokenprune {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        if find_spec(f"{__package__}.{name}") is not None:
            import_module(f"{__package__}.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, 2 after a wrong argument or input, 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    args.arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return int(import_module(f"{__package__}.{args.command}").run(args))
    except KeyboardInterrupt:
        print("tokenprune: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it exits
        return 0
    except (ValueError, TypeError, ImportError, OSError) as error:
        if args.traceback:
            raise
        print(f"tokenprune {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
