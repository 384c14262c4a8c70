"""Names of strategies, found without importing them: a misspelt one is an error at once, not after seconds."""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

_DECORATED = re.compile(r'^@strategy\(\s*"(\w+)".*?^class (\w+)', re.MULTILINE | re.DOTALL)


def check_names(words: Sequence[str]) -> None:
    """Check the names in every `--strategy` of a command line.

    Nothing is checked when strategies are imported already, or when an installed package brings some: their names are
    not known without importing them. `parse` then checks them as always.

    Raises:
        ValueError: names the strategy that does not exist, and those that are meant, perhaps.
    """
    if "torch" in sys.modules or entry_points(group="tokenprune.strategies"):
        return
    texts = [after for before, after in pairwise(words) if before == "--strategy"]
    texts += [word.partition("=")[2] for word in words if word.startswith("--strategy=")]
    known = known_names() if texts else frozenset()
    for text in texts:
        for name in called(text):
            if name not in known:
                near = get_close_matches(name, sorted(known), n=3, cutoff=0.5)
                hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
                raise ValueError(f"no strategy is called {name!r}; {hint} (`tokenprune strategies` lists them all)")


def known_names() -> frozenset[str]:
    """Give the names and class names of the strategies in this package's files."""
    root = Path(__file__).parents[1]
    files = [
        *root.glob("*.py"),
        *(file for part in ("core", "repmax", "baselines") for file in root.glob(f"{part}/*.py")),
    ]
    return frozenset(
        name
        for file in files
        for found in _DECORATED.finditer(file.read_text(encoding="utf-8"))
        for name in found.groups()
    )


def called(text: str) -> Iterator[str]:
    """Give the names that a strategy's text calls; none when it cannot be read, which `parse` explains.

    Examples:
        >>> list(called("mi_alignment(keep=0.8) >> greedy_repmax"))
        ['mi_alignment', 'greedy_repmax']
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _called(tree)


def _called(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from _called(node.left)
        yield from _called(node.right)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield node.func.id
    elif isinstance(node, ast.Name):
        yield node.id
