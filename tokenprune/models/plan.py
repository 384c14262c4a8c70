"""Which stages of a strategy act before the language model, and which inside it at what layer."""

from dataclasses import dataclass
from typing import Literal

from tokenprune.core.checks import Yields
from tokenprune.core.fields import check_choice
from tokenprune.core.merging import Merging
from tokenprune.core.places import InDecoder, InTower, Place, Positions
from tokenprune.core.signals import Signal
from tokenprune.core.strategy import Pipeline, PruningStrategy, Stage
from tokenprune.models.reading.sources import known_mid_layer

Site = Literal["tower", "projector", "decoder"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is dropped at one decoder layer: stages that share a layer run one after another there.

    Attributes:
        layer: the first layer that gets fewer tokens, counted from 0.
        stages: the stages.
        policy: how the positions of what is left are made.
    """

    layer: int
    stages: tuple[Stage, ...]
    policy: Positions

    @property
    def before_ffn(self) -> bool:
        """True when it can be made within the layer before, as soon as that one's attention is known."""
        places = [stage.place for stage in self.stages]
        inside = all(isinstance(place, InDecoder) and place.mid_layer for place in places)
        return inside and all(map(known_mid_layer, self.wants))

    @property
    def wants(self) -> tuple[Signal, ...]:
        """Signals that the stages read."""
        return tuple(dict.fromkeys(signal for stage in self.stages for signal in stage.needs))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A strategy, taken apart.

    Attributes:
        strategy: the whole.
        before: the part that acts before the language model, or None.
        policy: how positions are made before the language model.
        cuts: the parts inside it, layers ascending.
    """

    strategy: PruningStrategy
    before: PruningStrategy | None
    policy: Positions
    cuts: tuple[Cut, ...]

    @property
    def tower(self) -> Merging | None:
        """The part that acts inside the vision tower; what it merged there is also read off by `before`."""
        return tower_part(self.strategy)

    @property
    def makes_vectors(self) -> bool:
        """True when a stage between vision tower and language model makes new token vectors, of which no signal tells.

        Those that the vision tower merged have their signals.
        """
        stages = () if self.before is None else self.before.stages
        return any(stage.yields == "merged" and not isinstance(stage.place, InTower) for stage in stages)

    @property
    def final_policy(self) -> Positions:
        """The policy of the last part, for the record."""
        return self.cuts[-1].policy if self.cuts else self.policy


def tower_part(strategy: PruningStrategy) -> Merging | None:
    """The stage that acts inside the vision tower, if there is one; it comes first."""
    first = strategy.stages[0]
    return first if isinstance(first, Merging) else None


def makes(strategy: PruningStrategy, kind: Yields) -> bool:
    """Tell whether a stage of the strategy leaves tokens of a kind, "merged" or "extended"."""
    return any(stage.yields == kind for stage in strategy.stages)


def make_plan(strategy: PruningStrategy, positions: Positions | None = None) -> Plan:
    """Take a strategy apart by site.

    Args:
        strategy: any strategy.
        positions: one policy for all parts; None gives each part that of its authors.

    Raises:
        ValueError: when `positions` is unknown.
    """
    if positions is not None:
        check_choice("prune", "positions", positions, ("original", "compact"))
    layers: dict[int, list[tuple[Stage, Positions]]] = {}
    outside: list[Stage] = []
    for stage in strategy.stages:
        if isinstance(stage.place, InDecoder):
            layers.setdefault(stage.place.layer, []).append((stage, stage.place.positions))
        else:
            outside.append(stage)
    if not layers:
        return Plan(strategy=strategy, before=strategy, policy=positions or strategy.place.positions, cuts=())
    before = Pipeline(outside) if len(outside) > 1 else outside[0] if outside else None
    cuts = tuple(
        Cut(layer=layer, stages=tuple(stage for stage, _ in group), policy=positions or group[-1][1])
        for layer, group in sorted(layers.items())
    )
    # Without a stage before the language model nothing is dropped there: there are no gaps, with either policy.
    first = "compact" if before is None else before.place.positions
    return Plan(strategy=strategy, before=before, policy=positions or first, cuts=cuts)


def site_of(place: Place) -> Site:
    """Name a part of the model, as records and tables do."""
    if isinstance(place, InDecoder):
        return "decoder"
    return "tower" if isinstance(place, InTower) else "projector"
