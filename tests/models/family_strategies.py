"""For properties over all families: strategies of every site that keep some images whole, and batches of all kinds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.family_oracle import tiny
from tests.models.oracle import ByContent, KeepAll
from tokenprune import PLAIN, Choice, PruningStrategy, Tokens
from tokenprune import strategy as method
from tokenprune.core import places
from tokenprune.models import UnsupportedError, adapter_for
from tokenprune.models.prompt.choose import as_strategy, fit_strategy
from tokenprune.models.prompt.dense import is_placeholder
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


@method("some_whole", register=False)
class SomeWhole(ByContent):
    """Keeps every other image whole, of the others 3 to 11 random tokens, depending on the image alone."""

    def requested(self, tokens: Tokens) -> int | None:
        assert tokens.key is not None
        return tokens.n if tokens.key % 2 else super().requested(tokens)


@method("some_whole_inside", register=False)
class SomeWholeInside(SomeWhole):
    """The same inside the decoder."""

    layer: int = 2

    @property
    def place(self) -> places.InDecoder:
        return places.InDecoder(self.layer, "compact")


@method("in_place", register=False)
class InPlace(ByContent):
    """Keeps 3 to 11 random tokens where they are."""

    place = places.BeforeDecoder("original")


@method("some_whole_in_pick_order", register=False)
class SomeWholeInPickOrder(SomeWhole):
    """The same tokens, fed in the order in which they were drawn."""

    promises = PLAIN - {"ascending"}


@method("some_whole_merged", register=False)
class SomeWholeMerged(SomeWhole):
    """The same tokens, with the image's mean in each of them."""

    yields = "merged"

    def choose(self, tokens: Tokens) -> Choice:
        kept = super().choose(tokens)
        return replace(kept, features=tokens.visual[kept.indices] + tokens.visual.mean(0))


@method("keep_all_inside", register=False)
class KeepAllInside(KeepAll):
    """Keeps everything inside the decoder."""

    layer: int = 2

    @property
    def place(self) -> places.InDecoder:
        return places.InDecoder(self.layer, "compact")


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
