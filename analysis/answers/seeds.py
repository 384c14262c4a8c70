"""A strategy once per seed, and other questions about the same pictures: what analyses of answers repeat."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from tokenprune.core.strategy import Pipeline, PruningStrategy
from tokenprune.evaluate.batches import PictureNames
from tokenprune.evaluate.samples import Sample


def over_seeds(strategy: PruningStrategy, seeds: int) -> list[PruningStrategy]:
    """Give the strategy once per seed when it draws at random with the default seed, else alone.

    Examples:
        >>> from tokenprune.core.text import parse
        >>> over_seeds(parse("random(keep=4)"), 2)
        [random(keep=4), random(keep=4, seed=1)]
        >>> over_seeds(parse("greedy_repmax(keep=4)"), 2)
        [greedy_repmax(keep=4)]
    """
    stages = strategy.stages if isinstance(strategy, Pipeline) else (strategy,)
    if not any(_draws(stage) for stage in stages):
        return [strategy]
    found = []
    for seed in range(seeds):
        changed: list[Any] = [replace(stage, seed=seed) if _draws(stage) else stage for stage in stages]  # type: ignore[type-var]
        found.append(changed[0] if len(changed) == 1 else Pipeline(changed))
    return found


def questions_about_the_same(samples: Sequence[Sample]) -> dict[str, tuple[str, Sequence[str]]]:
    """Find for each sample the next other question about the same pictures, where there is one."""
    names = PictureNames()
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(names.of([sample]), []).append(sample)
    found: dict[str, tuple[str, Sequence[str]]] = {}
    for members in groups.values():
        for place, sample in enumerate(members):
            later = [*members[place + 1 :], *members[:place]]
            other = next((one for one in later if one.question != sample.question), None)
            if other is not None:
                found[sample.id] = (other.question, other.answers)
    return found


def _draws(stage: PruningStrategy) -> bool:
    if not is_dataclass(stage) or getattr(stage, "seed", None) != 0:
        return False
    start = getattr(stage, "start", "random")  # a seed that only serves start="random" is idle under any other start
    return start == "random" and any(field.name == "seed" for field in fields(stage))
