"""Which stages of a strategy act before the language model, and which inside it at what layer."""

from dataclasses import dataclass

from tokenprune.models.signals import MID_LAYER
from tokenprune.pipeline import Pipeline, StagedStrategy
from tokenprune.strategy import PositionPolicy, PruningStrategy, check_choice
from tokenprune.tokens import DECODER_SIGNALS
from tokenprune.tower import TowerStrategy


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is dropped at one decoder layer: stages that share a layer run one after another there.

    Attributes:
        layer: the first layer that gets fewer tokens, counted from 0.
        stages: the stages.
        policy: how the positions of what is left are made.
    """

    layer: int
    stages: tuple[PruningStrategy, ...]
    policy: PositionPolicy

    @property
    def before_ffn(self) -> bool:
        """True when it can be made within the layer before, as soon as that one's attention is known."""
        return all(stage.before_ffn for stage in self.stages) and self.wants & set(DECODER_SIGNALS) <= MID_LAYER

    @property
    def wants(self) -> frozenset[str]:
        """Fields of `Tokens` that the stages take."""
        return frozenset[str]().union(*(stage.needs | stage.uses for stage in self.stages))


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
    policy: PositionPolicy
    cuts: tuple[Cut, ...]

    @property
    def tower(self) -> TowerStrategy | None:
        """The part that acts inside the vision tower; what it merged there is also read off by `before`."""
        return tower_part(self.strategy)

    @property
    def makes_vectors(self) -> bool:
        """True when a stage between vision tower and language model makes new token vectors, of which no signal tells.

        Those that the vision tower merged have their signals.
        """
        stages = self.before.stages if isinstance(self.before, StagedStrategy) else (self.before,)
        return any(stage is not None and stage.merges and stage.site != "tower" for stage in stages)

    @property
    def final_policy(self) -> PositionPolicy:
        """The policy of the last part, for the record."""
        return self.cuts[-1].policy if self.cuts else self.policy


def tower_part(strategy: PruningStrategy) -> TowerStrategy | None:
    """The stage that acts inside the vision tower, if there is one; it comes first."""
    first = strategy.stages[0] if isinstance(strategy, StagedStrategy) else strategy
    return first if isinstance(first, TowerStrategy) else None


def make_plan(strategy: PruningStrategy, positions: PositionPolicy | None = None) -> Plan:
    """Take a strategy apart by site.

    Args:
        strategy: any strategy.
        positions: one policy for all parts; None gives each part that of its authors.

    Raises:
        ValueError: when `positions` is unknown.
    """
    if positions is not None:
        check_choice("prune", "positions", positions, ("original", "compact"))
    stages = strategy.stages if isinstance(strategy, StagedStrategy) else (strategy,)
    inside = [stage for stage in stages if stage.site == "decoder"]
    if not inside:
        return Plan(strategy=strategy, before=strategy, policy=positions or strategy.positions, cuts=())
    outside = [stage for stage in stages if stage.site != "decoder"]
    before = Pipeline(outside) if len(outside) > 1 else outside[0] if outside else None
    cuts = []
    for layer in sorted({stage.layer or 0 for stage in inside}):
        group = tuple(stage for stage in inside if stage.layer == layer)
        cuts.append(Cut(layer=layer, stages=group, policy=positions or group[-1].positions))
    # Without a stage before the language model nothing is dropped there: there are no gaps, with either policy.
    first = "compact" if before is None else before.positions
    return Plan(strategy=strategy, before=before, policy=positions or first, cuts=tuple(cuts))
