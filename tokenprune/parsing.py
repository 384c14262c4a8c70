"""`parse`: from text to a strategy."""

import ast
from collections.abc import Mapping

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
        raise TypeError(f"parse: text must be a str, got {text!r} of type {type(text).__name__}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"parse: cannot read {text!r}: {error.msg} (column {error.offset})") from None
    return _build(tree, text, known)


def _build(node: ast.expr, text: str, known: Mapping[str, type[PruningStrategy]] | None) -> PruningStrategy:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        return Pipeline([_build(node.left, text, known), _build(node.right, text, known)])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        shown = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(f"parse: expected a call like greedy_repmax(keep=64), got {shown!r} in {text!r}")
    cls = find_strategy(node.func.id, known)
    positional = [_value(argument, text, known) for argument in node.args]
    named: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"parse: ** is not allowed in {text!r}; write the arguments out")
        named[keyword.arg] = _value(keyword.value, text, known)
    try:
        return cls(*positional, **named)
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise TypeError(f"parse: {str(error).replace('__init__()', '').replace('  ', ' ')} in {text!r}") from None


def _value(node: ast.expr, text: str, known: Mapping[str, type[PruningStrategy]] | None) -> object:
    if isinstance(node, ast.Call | ast.BinOp) and not _is_number(node):
        return _build(node, text, known)
    try:
        return ast.literal_eval(node)
    except ValueError:
        shown = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(f"parse: {shown!r} in {text!r} is no literal; put strings in quotes") from None


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and not isinstance(node.op, ast.RShift)
