"""The cells of a comparison: which strategy, at which budget, with which seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenprune.baselines.layer_budget import keep_for_layer_average
from tokenprune.core.budget import Keep, check_keep, keep_count
from tokenprune.core.places import InDecoder, Positions
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.methods import Method, show_budget
from tokenprune.evaluate.run_folder import slug

DENSE = "dense"
"""Label of the unpruned model."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All samples once, under one strategy; `strategy` is None for the dense model.

    Attributes:
        id: unique in the comparison, and a valid file name.
        method: the method's label.
        keep: the budget; None for the dense model and for fixed methods, which have none.
        seed: of the random stages; None where there is nothing random.
        strategy: what selects.
        positions: "original" or "compact"; None for what the comparison or the strategy's authors do.
    """

    id: str
    method: str
    keep: Keep | None = None
    seed: int | None = None
    strategy: PruningStrategy | None = None
    positions: Positions | None = None


def make_cells(methods: Sequence[Method], budgets: Sequence[Keep], seeds: Sequence[int]) -> list[Cell]:
    """Every cell, dense first, then budget by budget, then fixed methods, which run at no budget.

    Args:
        methods: the rows.
        budgets: tokens (int) or shares (float).
        seeds: run by methods that draw at random; the others run once.

    Raises:
        ValueError: when one of the three is empty or repeats an entry, or a seed is negative.

    Examples:
        >>> [cell.id for cell in make_cells([Method("random"), Method("grid_pool")], [0.5], [0, 1])]
        ['000-dense', '001-random-50pct-s0', '002-random-50pct-s1', '003-grid_pool-50pct']
    """
    for name, values in (("methods", methods), ("budgets", budgets), ("seeds", seeds)):
        if not values:
            raise ValueError(f"make_cells: {name} is empty; give at least one")
        shown = [
            repr(value) for value in values
        ]  # not the values: one token (1) and everything (1.0) are equal numbers
        repeated = [text for i, text in enumerate(shown) if text in shown[:i]]
        if repeated:
            raise ValueError(f"make_cells: {name} holds {repeated[0]} twice; a cell would run twice")
    for budget in budgets:
        check_keep(budget, owner="make_cells", parameter="budgets")
    if min(seeds) < 0:
        raise ValueError(f"make_cells: seeds must be 0 or more, got {min(seeds)}")
    cells = [Cell(id="000-dense", method=DENSE)]
    levels: tuple[Keep | None, ...] = (*budgets, None)
    for keep in levels:
        for method in methods:
            if method.fixed != (keep is None):
                continue
            for seed in seeds if method.seeded else (None,):
                level = "fixed" if keep is None else show_budget(keep).replace("%", "pct")
                parts = [f"{len(cells):03d}", slug(method.label), level]
                cells.append(
                    Cell(
                        id="-".join(parts if seed is None else [*parts, f"s{seed}"]),
                        method=method.label,
                        keep=keep,
                        seed=seed,
                        strategy=method.strategy(keep=keep, seed=seed or 0),
                    )
                )
    return cells


def on_layer_average(cells: Sequence[Cell], *, n: int, layers: int) -> list[Cell]:
    """The cells with budgets taken as means over decoder layers: those that act in the decoder keep fewer in the end.

    Args:
        cells: from `make_cells`.
        n: visual tokens of an image. A budget that is a share stays one, so that images of other sizes fit, too.
        layers: number of decoder layers.

    Raises:
        ValueError: when a strategy cannot reach a budget; it names both.

    Examples:
        >>> cells = make_cells([Method("fastv(layer=1)"), Method("random")], [0.5], [0])
        >>> [cell.strategy for cell in on_layer_average(cells, n=256, layers=4)]
        [None, fastv(keep=0.33203125, layer=1), random(keep=0.5)]
    """
    converted = []
    for cell in cells:
        if cell.strategy is None or cell.keep is None or not isinstance(cell.strategy.place, InDecoder):
            converted.append(cell)
            continue

        def build(keep: Keep, strategy: PruningStrategy = cell.strategy) -> PruningStrategy:
            return strategy.with_keep(keep).at_depth(layers)

        wanted = keep_count(cell.keep, n)
        try:
            found = keep_for_layer_average(build, wanted, n=n, layers=layers)
        except ValueError as error:
            raise ValueError(f"{cell.method} at a budget of {show_budget(cell.keep)}: {error}") from error
        keep = found if isinstance(cell.keep, int) else found / n
        converted.append(replace(cell, strategy=cell.strategy.with_keep(keep)))
    return converted
