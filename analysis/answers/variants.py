"""What the ablation runs: each part of TrimTokenator left out, swapped or replaced, one at a time."""

from dataclasses import dataclass, replace

from tokenprune.core.budget import Keep, check_keep
from tokenprune.core.places import Positions
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.wrappers import PickOrder
from tokenprune.evaluate.methods import CONTROLS, Method, show_budget

SHARES = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Shares of the tokens that stage 1 lets through; those that leave fewer than the budget are left out."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of an ablation.

    Attributes:
        factor: what is varied.
        label: this setting of it, unique within the factor.
        text: a strategy without its budget, as `Method` reads it.
        reference: True for the setting that the others of the factor are compared with.
        positions: "original", "compact", or None for what the method's authors do.
        pick_order: tokens enter in the order in which they were picked instead of in raster order.
    """

    factor: str
    label: str
    text: str
    reference: bool = False
    positions: Positions | None = None
    pick_order: bool = False

    def strategies(self, keep: Keep, seeds: tuple[int, ...]) -> list[tuple[int | None, PruningStrategy]]:
        """The strategy with its budget, once per seed when it draws at random (else with the seed None)."""
        method = Method(self.text)
        used: tuple[int | None, ...] = seeds if method.seeded else (None,)
        made = [(seed, method.strategy(keep=keep, seed=seed or 0)) for seed in used]
        return [(seed, PickOrder(strategy) if self.pick_order else strategy) for seed, strategy in made]


def ablation_variants(keep: Keep, *, share: float = 0.8, exact_seconds: float = 0.5) -> tuple[Variant, ...]:
    """The ablations that a paper about TrimTokenator would be asked for, and the controls.

    Args:
        keep: the budget, as a share of the image's tokens or as a number; stage-1 shares below a share
            are left out.
        share: what stage 1 lets through where it is not varied.
        exact_seconds: time limit of the exact solver per image; 0 leaves it out.

    Examples:
        >>> [v.label for v in ablation_variants(0.111) if v.factor == "stages"]
        ['both, text first', 'stage 1 only', 'stage 2 only', 'both, diversity first']
    """
    check_keep(keep, owner="ablation_variants")
    first, second = f"mi_alignment(keep={share})", "greedy_repmax"
    both = f"{first} >> {second}"
    rows: list[tuple[str, list[Variant]]] = [
        (
            "stages",
            [
                _v("both, text first", both, reference=True),
                _v("stage 1 only", "mi_alignment"),
                _v("stage 2 only", second),
                _v("both, diversity first", f"greedy_repmax(keep={share}) >> mi_alignment"),
            ],
        ),
        (
            "share of stage 1",
            [
                _v(f"{100 * one:g}%", f"mi_alignment(keep={one}) >> {second}", reference=one == share)
                for one in sorted({*SHARES, share}, reverse=True)
                if not isinstance(keep, float) or one > keep
            ]
            + [_v(f"{show_budget(keep)}, the budget", "mi_alignment")],
        ),
        (
            "in place of stage 1",
            [
                _v("alignment", both, reference=True),
                _v("smallest norms", f"smallest_norm(keep={share}) >> {second}"),
                _v("random", f"random(keep={share}) >> {second}"),
                _v("nothing", second),
            ],
        ),
        (
            "alignment score",
            [
                _v("whole prompt, squared distance", both, reference=True),
                _v("question only", f"mi_alignment(keep={share}, text='question') >> {second}"),
                _v("plain distance", f"mi_alignment(keep={share}, metric='euclidean') >> {second}"),
                _v("cosine", f"mi_alignment(keep={share}, metric='cosine') >> {second}"),
                _v(
                    "cosine, best word of the question",
                    f"mi_alignment(keep={share}, metric='cosine', reduce='max', text='question') >> {second}",
                ),
            ],
        ),
        (
            "start of greedy",
            [
                _v("farthest from the mean", second, reference=True),
                _v("farthest pair", "greedy_repmax(start='pair')"),
                _v("token 0", "greedy_repmax(start='first')"),
                _v("random", "greedy_repmax(start='random')"),
            ],
        ),
        (
            "optimiser",
            [
                _v("greedy", second, reference=True),
                _v("reverse greedy", "reverse_greedy_repmax"),
                _v("greedy and swaps", "local_search_repmax"),
                _v("rounded relaxation", "relax_round_repmax"),
            ]
            + (
                [_v(f"exact, {exact_seconds:g} s per image", f"exact_repmax(time_limit={exact_seconds})")]
                if exact_seconds > 0
                else []
            ),
        ),
        (
            "objective",
            [
                _v("max-sum, cosine", second, reference=True),
                _v("max-sum, euclidean", "greedy_repmax(distance='euclidean')"),
                _v("max-min, cosine", "divprune"),
            ],
        ),
        (
            "order and positions",
            [
                _v("raster order, compact", second, reference=True, positions="compact"),
                _v("raster order, original", second, positions="original"),
                _v("pick order, compact", second, positions="compact", pick_order=True),
                _v("pick order, original", second, positions="original", pick_order=True),
            ],
        ),
        ("controls", [_v(name, name, reference=name == "random") for name in CONTROLS]),
    ]
    return tuple(replace(variant, factor=factor) for factor, members in rows for variant in members)


def _v(
    label: str,
    text: str,
    *,
    reference: bool = False,
    positions: Positions | None = None,
    pick_order: bool = False,
) -> Variant:
    return Variant(factor="", label=label, text=text, reference=reference, positions=positions, pick_order=pick_order)
