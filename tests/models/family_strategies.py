"""For properties over all families: strategies of every site that keep some images whole, and batches of all kinds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.family_oracle import tiny
from tests.models.oracle import ByContent, KeepAll
from tokenprune import PruningStrategy, Selection, Tokens
from tokenprune.models import UnsupportedError, adapter_for
from tokenprune.models.prompt import is_placeholder
from tokenprune.models.select import as_strategy, fit_strategy
from tokenprune.testing import tiny_families

KINDS = ("llava_next", "qwen2_vl", "qwen3_vl", "paligemma", "gemma3")
"""One family of each kind: one position axis, several, several with features for the decoder, positions from 1 on and a
prefix that sees itself, windows."""

FAMILIES = [
    pytest.param(family, marks=() if family in KINDS else pytest.mark.matrix, id=family) for family in tiny_families()
]

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@dataclass(frozen=True, repr=False)
class SomeWhole(ByContent):
    """Keeps every other image whole, of the others 3 to 11 random tokens, depending on the image alone."""

    name: ClassVar[str] = "some_whole"

    def requested(self, tokens: Tokens) -> int | None:
        assert tokens.key is not None
        return tokens.n if tokens.key % 2 else super().requested(tokens)


@dataclass(frozen=True, repr=False)
class SomeWholeInside(SomeWhole):
    """The same inside the decoder."""

    name: ClassVar[str] = "some_whole_inside"
    site = "decoder"
    layer: int = 2


@dataclass(frozen=True, repr=False)
class InPlace(ByContent):
    """Keeps 3 to 11 random tokens where they are."""

    name: ClassVar[str] = "in_place"
    positions = "original"


@dataclass(frozen=True, repr=False)
class SomeWholeInPickOrder(SomeWhole):
    """The same tokens, fed in the order in which they were drawn."""

    name: ClassVar[str] = "some_whole_in_pick_order"
    ascending = False


@dataclass(frozen=True, repr=False)
class SomeWholeMerged(SomeWhole):
    """The same tokens, with the image's mean in each of them."""

    name: ClassVar[str] = "some_whole_merged"
    merges = True

    def _select(self, tokens: Tokens) -> Selection:
        kept = super()._select(tokens)
        return replace(kept, features=tokens.visual[kept.indices] + tokens.visual.mean(0))


@dataclass(frozen=True, repr=False)
class KeepAllInside(KeepAll):
    """Keeps everything inside the decoder."""

    name: ClassVar[str] = "keep_all_inside"
    site = "decoder"
    layer: int = 2


STRATEGIES: tuple[PruningStrategy, ...] = (
    SomeWhole(),
    SomeWholeInPickOrder(),
    SomeWholeInside(),
    SomeWhole(seed=1) >> SomeWholeInside(),
    SomeWholeMerged(),
    as_strategy("fastv(keep=11, layer=2)"),
    as_strategy("greedy_repmax(keep=12) >> pyramiddrop_stage(keep=7, layer=2) >> fastv(keep=5, layer=3)"),
    as_strategy("sparsevlm_stage(keep=9, layer=1) >> sparsevlm_stage(keep=7, layer=2)"),
    as_strategy("tome(keep=9)"),
)
"""Of every site: before the language model and inside it, with features and new tokens, and in the vision tower."""


def strategies_of(family: str) -> list[PruningStrategy]:
    """Those of `STRATEGIES` that go with a family."""
    return [strategy for strategy in STRATEGIES if _fits(family, strategy)]


def _fits(family: str, strategy: PruningStrategy) -> bool:
    try:
        fit_strategy(strategy, adapter_for(tiny(family)[0]))
    except UnsupportedError:
        return False
    return True


def ending_in_images(family: str, prompts: Sequence[str]) -> dict[str, Any]:
    """Arguments for prompts of which nothing follows the last image, marks that some families put there neither."""
    model, make_inputs = tiny(family)
    inputs = make_inputs(prompts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = is_placeholder(ids, adapter_for(model))
    ends = torch.where(visual, torch.arange(ids.shape[1]), 0).amax(1).tolist()
    places = [[c for c in mask[row].nonzero().flatten().tolist() if c <= end] for row, end in enumerate(ends)]
    width = max(map(len, places))
    changed: dict[str, Any] = dict(inputs)
    for name, value in inputs.items():
        if value.shape == ids.shape:
            changed[name] = torch.zeros((len(places), width), dtype=value.dtype)
            for row, columns in enumerate(places):
                changed[name][row, width - len(columns) :] = value[row, columns]
    assert bool(is_placeholder(changed["input_ids"], adapter_for(model))[:, -1].all())
    return changed
