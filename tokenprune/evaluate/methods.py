"""`Method`: a strategy's text without its budget, so that one text serves every budget and seed."""

import ast
from dataclasses import dataclass, field

from tokenprune.core.budget import Keep, parse_budget, show_budget
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import open_arguments, parse, read, split

__all__ = ["CONTROLS", "DEFAULT_BUDGETS", "DEFAULT_METHODS", "Method", "parse_budget", "show_budget"]

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
    seeded: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        stages = list(split(read(self.text)))
        object.__setattr__(self, "text", " >> ".join(ast.unparse(stage).removesuffix("()") for stage in stages))
        takes, opened, seeded = open_arguments(self.text)
        if takes and not opened:
            parse(self.text, keep=0.5)  # says why the budget must be left out
        object.__setattr__(self, "fixed", not takes)
        object.__setattr__(self, "seeded", seeded)
        self.strategy(keep=None if self.fixed else 0.5)

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        return self.text

    def strategy(self, *, keep: Keep | None = None, seed: int = 0) -> PruningStrategy:
        """The strategy with this budget, and with this seed in every stage that leaves it open.

        Args:
            keep: number of tokens (int) or share of the image's original tokens (float); None for a fixed method.
            seed: a non-negative int.

        Raises:
            ValueError: when a fixed method is given a budget, or another one none.
        """
        if not self.fixed and keep is None:
            raise ValueError(f"{self.text!r}: the last stage has a `keep`; give a budget for it")
        return parse(self.text, keep=keep, seed=seed)
