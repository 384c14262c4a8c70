"""`Method`: a strategy's text without its budget, so that one text serves every budget and seed."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass

from tokenprune.core.budget import Keep, check_keep
from tokenprune.core.registry import find_strategy
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse

CONTROLS = ("random", "uniform_grid", "grid_pool")
"""Rows that every comparison carries: a method that cannot beat them has not shown anything."""
DEFAULT_METHODS = ("mi_alignment", "greedy_repmax", "trim_tokenator")
DEFAULT_BUDGETS: tuple[Keep, ...] = (0.5, 0.333, 0.222, 0.111, 0.056)


@dataclass(frozen=True)
class Method:
    """One row of a comparison before budget and seed are put in.

    Args:
        text: a strategy as `parse` reads it, except that the last stage leaves `keep` out. Brackets that would be empty
            may be left out too. Stages with a `seed` parameter that is not written out run once per seed. When the
            last stage has no `keep`, there is no budget to put in: the method is one `fixed` configuration.

    Raises:
        ValueError: when the text cannot be read, or the last stage has a `keep` that is written out.
        TypeError: when an argument does not exist or is missing.

    Examples:
        >>> Method("trim_tokenator(align=0.7)").strategy(keep=64)
        trim_tokenator(keep=64, align=0.7)
        >>> Method("mi_alignment(keep=0.8) >> random").strategy(keep=0.111, seed=3)
        mi_alignment(keep=0.8) >> random(keep=0.111, seed=3)
        >>> Method("vtw(layer=2)").fixed, Method("vtw(layer=2)").strategy()
        (True, vtw(layer=2))
    """

    text: str
    fixed: bool = field(init=False, repr=False, compare=False, default=False)
    _open: tuple[bool, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        tree = _read(self.text)
        object.__setattr__(self, "text", _show(tree))
        *_, last = _stages(tree)
        cls = find_strategy(_name(last))
        object.__setattr__(self, "fixed", "keep" not in _parameters(cls))
        written = isinstance(last, ast.Call) and (last.args or any(word.arg == "keep" for word in last.keywords))
        if written and not self.fixed:
            raise ValueError(
                f"{self.text!r}: the last stage's keep is filled in per budget; leave it out here, "
                "write other arguments by name and give budgets with --keep"
            )
        # Per stage, found out once: looking names up walks through all installed packages.
        object.__setattr__(self, "_open", tuple(_open_seed(stage) for stage in _stages(tree)))
        self.strategy(keep=None if self.fixed else 0.5)

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        return self.text

    @property
    def seeded(self) -> bool:
        """True when some stage draws at random with a seed that the text leaves open."""
        return any(self._open)

    def strategy(self, *, keep: Keep | None = None, seed: int = 0) -> PruningStrategy:
        """The strategy with this budget, and with this seed in every stage that leaves it open.

        Args:
            keep: number of tokens (int) or share of the image's original tokens (float); None for a fixed method.
            seed: a non-negative int.

        Raises:
            ValueError: when a fixed method is given a budget, or another one none.
        """
        if self.fixed and keep is not None:
            raise ValueError(
                f"{self.text!r}: the last stage has no `keep`, so no budget can be put in; choose another last stage"
            )
        if not self.fixed and keep is None:
            raise ValueError(f"{self.text!r}: the last stage has a `keep`; give a budget for it")
        stages = list(_stages(_read(self.text)))
        filled = [
            _filled(
                stage,
                {"keep": keep} if keep is not None and stage is stages[-1] else {},
                {"seed": seed} if is_open else {},
            )
            for stage, is_open in zip(stages, self._open, strict=True)
        ]
        return parse(" >> ".join(filled))


def parse_budget(text: str) -> Keep:
    """A budget from the command line: "64" tokens, "0.111" or "11.1%" of the image's tokens.

    Raises:
        ValueError: when it is none of the three, or out of range.

    Examples:
        >>> parse_budget("64"), parse_budget("0.111"), parse_budget("11.1%")
        (64, 0.111, 0.111)
    """
    stripped = text.strip()
    try:
        if stripped.endswith("%"):
            return check_keep(round(float(stripped[:-1]) / 100, 12), owner="budget")
        return check_keep(int(stripped) if stripped.lstrip("+-").isdigit() else float(stripped), owner="budget")
    except ValueError as error:
        reason = f" ({error})" if "keep must" in str(error) else ""
        raise ValueError(f"--keep must be like 64 (tokens), 0.111 or 11.1% (share), got {text!r}{reason}") from None


def show_budget(keep: Keep) -> str:
    """A budget as tables print it.

    Examples:
        >>> show_budget(64), show_budget(0.111), show_budget(0.5)
        ('64', '11.1%', '50%')
    """
    return str(keep) if isinstance(keep, int) else f"{keep * 100:.4g}%"


def _read(text: str) -> ast.expr:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read the strategy {text!r}: {error.msg} (column {error.offset})") from None
    for stage in _stages(tree):
        _name(stage)
    return tree


def _stages(tree: ast.expr) -> Iterator[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.RShift):
        yield from _stages(tree.left)
        yield from _stages(tree.right)
    else:
        yield tree


def _name(stage: ast.expr) -> str:
    called = stage.func if isinstance(stage, ast.Call) else stage
    if not isinstance(called, ast.Name):
        raise ValueError(
            f"cannot read the strategy stage {ast.unparse(stage)!r}; write names like greedy_repmax, with >> between"
        )
    return called.id


def _parameters(cls: type[PruningStrategy]) -> dict[str, object]:
    return {field.name: field.type for field in fields(cls)} if is_dataclass(cls) else {}


def _open_seed(stage: ast.expr) -> bool:
    cls = find_strategy(_name(stage))
    given = {keyword.arg: keyword.value for keyword in stage.keywords} if isinstance(stage, ast.Call) else {}
    # Only a plain int called seed is one; one of another type means something else.
    if "seed" in given or _parameters(cls).get("seed") not in (int, "int"):
        return False
    # A seed that only serves start="random" is idle under any other start; five equal runs would show a spread of 0.
    start = given.get("start")
    idle = "start" in _parameters(cls) and not (isinstance(start, ast.Constant) and start.value == "random")
    return not idle


def _filled(stage: ast.expr, *extra: Mapping[str, Keep]) -> str:
    call = stage if isinstance(stage, ast.Call) else ast.Call(stage, [], [])
    keywords = [ast.keyword(name, ast.Constant(value)) for more in extra for name, value in more.items()]
    return ast.unparse(ast.Call(call.func, call.args, [*keywords, *call.keywords]))


def _show(tree: ast.expr) -> str:
    return " >> ".join(ast.unparse(stage).removesuffix("()") for stage in _stages(tree))
