"""`parse`: from text to a strategy; and what tables say of a class."""

import ast
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, cast

from tokenprune.arguments import brief
from tokenprune.core import registry
from tokenprune.core.budget import Keep, check_keep
from tokenprune.core.strategy import Pipeline, PruningStrategy

Known = Mapping[str, type[PruningStrategy]] | None


class _Fill(NamedTuple):
    """What is filled in where the text leaves it open; None for nothing."""

    keep: Keep | None
    seed: int | None

    @property
    def open(self) -> bool:
        return self.keep is not None or self.seed is not None


def parse(text: str, *, keep: Keep | None = None, seed: int | None = None, known: Known = None) -> PruningStrategy:
    """Build a strategy from its text form; `parse(repr(strategy)) == strategy`.

    The text is read as data and never run: names, literals, calls and `>>` are all it may hold. The command line,
    configuration files and result ids use the same form.

    Args:
        text: for example "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)". Class names work too. With `keep` or
            `seed`, brackets that would be empty may be left out.
        keep: the budget of the last stage, which the text leaves open.
        seed: the seed of every stage whose seed the text leaves open.
        known: strategy classes by name, beside the registered ones.

    Returns:
        The strategy; a `Pipeline` when there is a `>>`.

    Raises:
        TypeError: when `text` is no string, or an argument does not exist or is missing.
        ValueError: when the text cannot be read, a name is unknown, a value is not allowed, or there is no open `keep`.

    Examples:
        >>> parse("GreedyRepMax(64, distance='euclidean')")
        greedy_repmax(keep=64, distance='euclidean')
        >>> parse("mi_alignment(keep=0.8) >> random", keep=0.111, seed=3)
        mi_alignment(keep=0.8) >> random(keep=0.111, seed=3)
    """
    fill = _Fill(None if keep is None else check_keep(keep, owner="parse"), seed)
    tree = read(text)
    try:
        return _build(tree, text, known, fill)
    except (RecursionError, MemoryError):
        raise _too_deep(text) from None


def read(text: str) -> ast.expr:
    """Read a strategy's text as a syntax tree, without looking names up.

    Raises:
        TypeError: when it is no string.
        ValueError: when it is no expression.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: text must be a str, got {brief(text, 300)} of type {type(text).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about its own syntax: this is data
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"parse: cannot read {brief(text, 300)}: {error.msg} (column {error.offset})") from None
    except (RecursionError, MemoryError):
        raise _too_deep(text) from None
    except UnicodeEncodeError as error:
        raise ValueError(f"parse: cannot read {brief(text, 300)}: {error.reason} (column {error.start + 1})") from None


def _too_deep(text: str) -> ValueError:
    return ValueError(
        f"parse: {brief(text, 300)} is nested too deeply, in {len(text)} characters; write stages side by side and "
        "without needless parentheses"
    )


def split(tree: ast.expr) -> list[ast.expr]:
    """Split a tree at `>>`; a chain of any length is one level deep."""
    parts, waiting = list[ast.expr](), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
            waiting += [node.left, node.right]
        else:
            parts.append(node)
    return parts[::-1]


def open_arguments(text: str, *, known: Known = None) -> tuple[bool, bool, bool]:
    """Tell whether the last stage takes a budget, whether the text leaves it open, and whether it leaves a seed open.

    Raises:
        TypeError: when it is no string.
        ValueError: when it cannot be read, or a name is unknown.

    Examples:
        >>> open_arguments("mi_alignment(keep=0.8) >> random"), open_arguments("vtw(layer=2)")
        ((True, True, True), (False, False, False))
    """
    stages = split(read(text))
    seeds = [_opens(stage, "seed", text, known) for stage in stages]
    opened, last = _opens(stages[-1], "keep", text, known), _call(stages[-1], text, bare=True)[0]
    return opened or "keep" in _names(registry.find(last, known)), opened, any(seeds)


def example(cls: type[PruningStrategy]) -> PruningStrategy:
    """Build the class's example, for the contract suite and tables."""
    return parse(cls.example or f"{cls.name}(keep=0.5)", known={cls.name: cls})


def strategies() -> dict[str, type[PruningStrategy]]:
    """Return every known strategy class by name: built in, from installed packages, registered here.

    Raises:
        ValueError: when an installed package claims a name that is taken.
        TypeError: when an entry point does not name a strategy class.
    """
    return cast("dict[str, type[PruningStrategy]]", registry.everything())


def _opens(stage: ast.expr, name: str, text: str, known: Known) -> bool:
    called, arguments, keywords = _call(stage, text, bare=True)
    cls = registry.find(called, known)
    given = {word.arg: word.value for word in keywords}
    names = _names(cls)
    if name in names:
        return not _written(cls, name, len(arguments), given)
    inside = [value for place, value in [*zip(names, arguments, strict=False), *given.items()] if _is_strategy(value)]
    return any(_opens(value, name, text, known) for value in inside)


def _written(cls: type, name: str, positional: int, given: Mapping[str | None, object]) -> bool:
    """Tell whether a call gives an argument, or a seed that would be idle."""
    names = _names(cls)
    if name in given or positional > names.index(name):
        return True
    # A seed that only serves start="random" is idle under any other start; five equal runs would show a spread of 0.
    start = given.get("start")
    start = start.value if isinstance(start, ast.Constant) else start
    return name == "seed" and "start" in names and start != "random"


def _build(node: ast.expr, text: str, known: Known, fill: _Fill) -> PruningStrategy:
    *earlier, node = split(node)
    if earlier:
        parts = [_build(part, text, known, fill._replace(keep=None)) for part in earlier]
        return Pipeline([*parts, _build(node, text, known, fill)])
    called, arguments, keywords = _call(node, text, bare=fill.open)
    cls = registry.find(called, known)
    names, given = _names(cls), {word.arg: cast("object", word.value) for word in keywords}
    filled: dict[str, object] = {}
    inner = fill
    if "keep" in names:
        if fill.keep is not None and _written(cls, "keep", len(arguments), given):
            raise ValueError(
                f"{brief(text, 300)}: the last stage's keep is filled in per budget; leave it out here, write other "
                "arguments by name and give budgets with --keep"
            )
        if fill.keep is not None:
            filled["keep"] = fill.keep
        inner = inner._replace(keep=None)
    if "seed" in names and fill.seed is not None and not _written(cls, "seed", len(arguments), given):
        filled["seed"] = fill.seed
    values = [_value(argument, text, known, inner) for argument in arguments]
    for word in keywords:
        if word.arg is None:
            raise ValueError(f"parse: ** is not allowed in {brief(text, 300)}; write the arguments out")
        if word.arg in filled:
            raise ValueError(f"parse: {word.arg} is given twice in {brief(text, 300)}; write it once")
        filled[word.arg] = _value(word.value, text, known, inner)
    if inner.keep is not None and not any(isinstance(value, PruningStrategy) for value in (*values, *filled.values())):
        raise ValueError(
            f"{brief(text, 300)}: the last stage has no `keep`, so no budget can be put in; choose another last stage"
        )
    try:
        built: PruningStrategy = cls(*values, **filled)
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise TypeError(
            f"parse: {str(error).replace('__init__()', '').replace('  ', ' ')} in {brief(text, 300)}"
        ) from None
    return built


def _call(node: ast.expr, text: str, *, bare: bool) -> tuple[str, list[ast.expr], list[ast.keyword]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id, node.args, node.keywords
    if bare and isinstance(node, ast.Name):
        return node.id, [], []
    shown = ast.get_source_segment(text.strip(), node) or text
    raise ValueError(f"parse: expected a call like greedy_repmax(keep=64), got {brief(shown)} in {brief(text, 300)}")


def _value(node: ast.expr, text: str, known: Known, fill: _Fill) -> Any:  # noqa: ANN401
    if _is_strategy(node) or (fill.open and isinstance(node, ast.Name)):
        return _build(node, text, known, fill)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # such as a dictionary whose key is a list
        shown = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(f"parse: {brief(shown)} in {brief(text, 300)} is no literal; put strings in quotes") from None


def _is_strategy(node: object) -> bool:
    return isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift))


def _names(cls: type) -> list[str]:
    """Arguments of a class, those that may be given by position first."""
    known = fields(cls) if is_dataclass(cls) else ()
    return [each.name for each in sorted(known, key=lambda each: each.kw_only is True)]
