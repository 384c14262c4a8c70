"""`parse`: from text to a strategy."""

import ast
import warnings
from collections.abc import Mapping

from tokenprune.arguments import brief
from tokenprune.pipeline import Pipeline
from tokenprune.registry import find_strategy
from tokenprune.strategy import PruningStrategy


def parse(text: str, *, known: Mapping[str, type[PruningStrategy]] | None = None) -> PruningStrategy:
    """Build a strategy from its text form; `parse(repr(strategy)) == strategy`.

    The text is read as data and never run: names, literals, calls and `>>` are all it may hold. The command line,
    configuration files and result ids use the same form.

    Args:
        text: for example "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)". Class names work too.
        known: strategy classes by name, beside the registered ones.

    Returns:
        The strategy; a `Pipeline` when there is a `>>`.

    Raises:
        TypeError: when `text` is no string, or an argument does not exist or is missing.
        ValueError: when the text cannot be read, a name is unknown, or a value is not allowed.

    Examples:
        >>> parse("GreedyRepMax(64, distance='euclidean')")
        greedy_repmax(keep=64, distance='euclidean')
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: text must be a str, got {brief(text, 300)} of type {type(text).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about its own syntax: this is data
            tree = ast.parse(text.strip(), mode="eval").body
        return _build(tree, text, known)
    except SyntaxError as error:
        raise ValueError(f"parse: cannot read {brief(text, 300)}: {error.msg} (column {error.offset})") from None
    except (RecursionError, MemoryError):
        raise ValueError(
            f"parse: {brief(text, 300)} is nested too deeply, in {len(text)} characters; write stages side by side and "
            "without needless parentheses"
        ) from None
    except UnicodeEncodeError as error:
        raise ValueError(f"parse: cannot read {brief(text, 300)}: {error.reason} (column {error.start + 1})") from None


def _build(node: ast.expr, text: str, known: Mapping[str, type[PruningStrategy]] | None) -> PruningStrategy:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        stages = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):  # a >> b >> c is (a >> b) >> c
            stages.append(node.right)
            node = node.left
        return Pipeline([_build(stage, text, known) for stage in [node, *reversed(stages)]])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        shown = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(
            f"parse: expected a call like greedy_repmax(keep=64), got {brief(shown)} in {brief(text, 300)}"
        )
    cls = find_strategy(node.func.id, known)
    positional = [_value(argument, text, known) for argument in node.args]
    named: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"parse: ** is not allowed in {brief(text, 300)}; write the arguments out")
        if keyword.arg in named:
            raise ValueError(f"parse: {keyword.arg} is given twice in {brief(text, 300)}; write it once")
        named[keyword.arg] = _value(keyword.value, text, known)
    try:
        return cls(*positional, **named)
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise TypeError(
            f"parse: {str(error).replace('__init__()', '').replace('  ', ' ')} in {brief(text, 300)}"
        ) from None


def _value(node: ast.expr, text: str, known: Mapping[str, type[PruningStrategy]] | None) -> object:
    if isinstance(node, ast.Call | ast.BinOp) and not _is_number(node):
        return _build(node, text, known)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # such as a dictionary whose key is a list
        shown = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(f"parse: {brief(shown)} in {brief(text, 300)} is no literal; put strings in quotes") from None


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and not isinstance(node.op, ast.RShift)
