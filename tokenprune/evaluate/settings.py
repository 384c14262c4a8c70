"""`Settings`: everything about a comparison that is chosen, and the configuration that names its run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.fields import check_choice
from tokenprune.core.places import Positions
from tokenprune.evaluate.cells import Cell, make_cells
from tokenprune.evaluate.environment import device_name, foreign_sources, package_versions, source_digest
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.methods import CONTROLS, DEFAULT_BUDGETS, DEFAULT_METHODS, Method
from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION
from tokenprune.evaluate.samples import Sample, samples_digest

DEFAULT_BATCH_SIZE = 16
DEFAULT_SEEDS = 5
Budget = Literal["kept", "layer-average"]
BUDGETS = ("kept", "layer-average")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare, and how.

    Args:
        methods: the rows beside dense and the controls, which are always there.
        budgets: tokens (int) or shares of the image's tokens (float); fixed methods take part once, at none of them.
        seeds: for methods that draw at random.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        positions: "original", "compact", or None for what each strategy's authors do.
        budget: what budgets mean. "kept": tokens that are left behind the last stage. "layer-average": the mean over
            decoder layers of the tokens that enter them, so that strategies inside the decoder, which drop later, keep
            fewer in the end; for all others it is the same.

    Attributes:
        cells: every cell, dense first.

    Raises:
        ValueError: when a number is not positive, a list is empty or repeats an entry.

    Examples:
        >>> [method.label for method in Settings(methods=(Method("greedy_repmax"),)).all_methods]
        ['random', 'uniform_grid', 'grid_pool', 'greedy_repmax']
    """

    methods: tuple[Method, ...] = field(default_factory=lambda: tuple(Method(text) for text in DEFAULT_METHODS))
    budgets: tuple[Keep, ...] = DEFAULT_BUDGETS
    seeds: tuple[int, ...] = tuple(range(DEFAULT_SEEDS))
    batch_size: int = DEFAULT_BATCH_SIZE
    max_new_tokens: int = 16
    positions: Positions | None = None
    budget: Budget = "kept"
    cells: tuple[Cell, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: {name} must be 1 or more, got {getattr(self, name)}")
        if self.positions is not None:
            check_choice("Settings", "positions", self.positions, ("original", "compact"))
        check_choice("Settings", "budget", self.budget, BUDGETS)
        object.__setattr__(self, "cells", tuple(make_cells(self.all_methods, self.budgets, self.seeds)))

    @cached_property
    def all_methods(self) -> tuple[Method, ...]:
        """Controls first, then the methods; a control that is asked for by name stands once."""
        return tuple(dict.fromkeys([*(Method(text) for text in CONTROLS), *self.methods]))


def configuration(settings: Settings, loaded: LoadedModel, data: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the numbers depend on, as plain JSON values; the run folder is named after its hash.

    The code counts by the content of its files, so that a run is never resumed by a changed program, committed or not,
    and machine and threads count because times depend on them.

    Args:
        settings: what is compared.
        loaded: the model.
        data: what the data set is called.
        samples: the data set.
    """
    versions = package_versions()
    strategies = [cell.strategy for cell in settings.cells if cell.strategy is not None]
    return {
        "model": {"name": loaded.name, "digest": loaded.digest},
        **({"clip": loaded.clip_digest} if loaded.clip_digest else {}),
        "data": {"name": data, "samples": len(samples), "digest": samples_digest(samples)},
        "metric": METRIC,
        "metric_version": METRIC_VERSION,
        "methods": [method.text for method in settings.all_methods],
        "budgets": list(settings.budgets),
        "budget": settings.budget,
        "seeds": list(settings.seeds),
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "positions": settings.positions or "default",
        "device": loaded.device,
        "device_name": device_name(loaded.device),
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "threads": torch.get_num_threads(),
        "code": {
            "source": source_digest(),
            "strategies": foreign_sources(strategies),
            **{name: versions[name] for name in ("tokenprune", "torch", "transformers")},
        },
    }
