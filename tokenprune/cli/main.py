"""Entry point of the command line; nothing heavy is imported before a command runs."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tokenprune import __version__
from tokenprune.cli.names import check_names

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = {
    "compare": "Compare strategies at several budgets on a model and a data set.",
    "select": "Prune one image, draw the kept tokens, answer a question with and without pruning.",
    "strategies": "List every strategy.",
    "optimality": "Measure how far greedy RepMax is from the proved optimum.",
    "analyze": "Say why a method works, or does not: one analysis per subcommand.",
    "bench": "Measure the speed of selection, and of a model dense against pruned.",
    "doctor": "Prune one image on a model, compare with masked runs, say what is supported.",
}
"""Modules of this package with their `app`, in the order in which help lists them."""
ALIASES = {"gap": "optimality"}
"""Former names, understood for one release."""
USER_ERROR = 2
INTERRUPTED = 130


def build_app() -> "App":
    """Make the command line; a command's module is imported when the command is used."""
    from cyclopts import App

    app = App(
        name="tokenprune",
        help="Compare and inspect visual-token pruning strategies for LLaVA-like models.",
        help_epilogue="Every command takes --json, and --traceback, which shows where an error comes from.",
        version=f"tokenprune {__version__}",
        version_flags=["--version"],
        help_format="plaintext",
    )
    for place, (name, text) in enumerate(COMMANDS.items()):
        app.command(f"{__package__}.{name}:app", name=name, help=text, sort_key=place)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, 2 after a wrong argument or input, 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 after a wrong option, 0 after help.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in given
    words = [ALIASES.get(word, word) if place == 0 else word for place, word in enumerate(given)]
    words = _with_compiler([word for word in words if word != "--traceback"])
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        check_names(words)
        return _run(build_app(), words, given)
    except KeyboardInterrupt:
        print("tokenprune: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it exits
        return 0
    except (ValueError, TypeError, ImportError, OSError) as error:
        if traceback:
            raise
        print(f"tokenprune {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR


def _run(app: "App", words: list[str], given: list[str]) -> int:
    """Parse and run; wrong usage is said in two lines, and ends the process with status 2."""
    from cyclopts import CycloptsError

    from tokenprune.cli.options import remember

    remember(given)
    path = _path(app, words)
    if path and _only_a_group(app, path) and not {"--help", "-h", "--version"} & set(words):
        _refuse(path, "give one of its commands; --help lists them")
    if not words:
        _refuse([], f"give a command: {', '.join(COMMANDS)}")
    if not words[0].startswith("-") and words[0] not in COMMANDS:  # said here: for suggestions all would be imported
        near = get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        _refuse([], f"there is no command {words[0]!r}; {hint}")
    try:
        command, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _refuse(path, " ".join(str(error).split()))
    asked_for_help = getattr(command, "__self__", None) is not None
    status: Any = command(*bound.args, **bound.kwargs)
    if asked_for_help:
        raise SystemExit(0)
    return int(status or 0)


def _with_compiler(words: list[str]) -> list[str]:
    """Put the default after a --compile that stands alone."""
    found = []
    for place, word in enumerate(words):
        found.append(word)
        if word == "--compile" and (place + 1 == len(words) or words[place + 1].startswith("-")):
            found.append("inductor")
    return found


def _path(app: "App", words: Sequence[str]) -> list[str]:
    """Give the words that name a command and its subcommand."""
    path, at = [], app
    for word in words:
        if word not in at:
            break
        path.append(word)
        at = at[word]
    return path


def _only_a_group(app: "App", path: Sequence[str]) -> bool:
    at = app
    for word in path:
        at = at[word]
    return at.default_command is None


def _refuse(path: Sequence[str], message: str) -> None:
    name = " ".join(["tokenprune", *path])
    print(f"usage: {name} [OPTIONS]; {name} --help says more\n{name}: error: {message}", file=sys.stderr)
    raise SystemExit(USER_ERROR)
