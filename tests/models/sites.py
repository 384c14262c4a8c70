"""A strategy of every site that a family has, and calls of a model whose outcomes can be compared."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.decoder_oracle import Attended
from tests.models.family_oracle import tiny
from tests.models.oracle import EVERYTHING, ByContent
from tokenprune import Choice, Keep, PruningStrategy, Tokens
from tokenprune import strategy as method
from tokenprune.baselines import FitPruneStage, SparseVLM, ToMe
from tokenprune.core import strategy as core
from tokenprune.evaluate.doctor import longer
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_families
from tokenprune.testing.tiny.models import MakeInputs

FAMILIES = tiny_families()
ONE_OF_A_KIND = ("llava", "llava_next", "qwen3_vl", "paligemma")
"""A tower that can merge; several tiles; features that the decoder adds; a prompt whose columns all see each other."""

IN_THE_TOWER = ("tower", "attention in the tower", "projector")
"""`places` that run for images only."""

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@method("by_signals", register=False)
class BySignals(core.Stage):
    """Keeps the tokens for which the vision tower's signals are largest, whichever of them the family has."""

    keep: Keep = 4
    needs = tuple(replace(signal, default=None) for signal in sorted(EVERYTHING, key=lambda signal: signal.name))

    def choose(self, tokens: Tokens) -> Choice:
        scores = tokens.visual.float().norm(dim=1)
        for signal in self.needs:
            value = tokens[signal]
            if value is not None and signal.token_axis is not None:
                rows = value.float().movedim(signal.token_axis, 0).norm(dim=1)
                scores = scores + rows / rows.max()
        order = scores.argsort(descending=True, stable=True)
        return Choice(order[: self.count(tokens)].sort().values)


def sites(family: str) -> dict[str, PruningStrategy]:
    """Strategies for every site of a family, alone and one after another."""
    found: dict[str, PruningStrategy] = {"projector": BySignals()}
    supported = adapter_for(tiny(family)[0]).sites
    if "decoder" in supported:
        found["decoder"] = Attended(layer=2)
        found["mixed"] = BySignals(9) >> SparseVLM(3, schedule=(6, 4), layers=(2, 3))
        found["within a layer"] = ByContent() >> FitPruneStage(3, layer=3)
    if "tower" in supported:
        found["tower"] = ToMe(r=2)
        found["tower and decoder"] = ToMe(r=2) >> Attended(layer=2)
    return found


def places(model: Any) -> dict[str, nn.Module]:
    """Modules on the way of a call, in the order in which they run."""
    adapter = adapter_for(model)
    base = adapter.base
    projector = getattr(base, "multi_modal_projector", None) or getattr(base, "connector", None) or base.visual.merger
    return {
        "tower": adapter.vision_tower,
        "attention in the tower": adapter.vision_attention[1],
        "projector": projector,
        "model": model,
        "language model": adapter.decoder,
        **{f"layer {number}": layer for number, layer in enumerate(adapter.decoder_layers)},
        "feed-forward of layer 2": adapter.decoder_layers[2].mlp,
        "head": model.lm_head,
    }


@dataclass(frozen=True)
class Outcome:
    """What a call gave: logits, or the kind of an error and its message."""

    logits: Tensor | None
    error: str = ""

    def matches(self, other: "Outcome") -> bool:
        """Whether both are the same answer or the same error."""
        if self.logits is None or other.logits is None:
            return self.logits is other.logits and self.error == other.error
        return self.logits.shape == other.logits.shape and bool((self.logits - other.logits).abs().max() <= 1e-5)


class Scene:
    """Inputs for one family, and every way of calling the model with them.

    Args:
        family: one of `FAMILIES`.
        prompts: with images.
        made: another model of the family, and its inputs.
    """

    def __init__(
        self,
        family: str,
        prompts: tuple[str, ...] = ("look at <1> now please", "see <2> and <0> here"),
        made: tuple[Any, MakeInputs] | None = None,
    ) -> None:
        self.family = family
        self.model, self.make_inputs = made or tiny(family)
        self.inputs = self.make_inputs(list(prompts))
        self.text = self.make_inputs(["only words here now"])
        self.one = self.make_inputs(["look at <1> now"])
        self.first: Any = None

    def begin(self) -> None:
        """The first turn of a conversation, whose cache `continue` and `step` go on with."""
        placeholders = list(adapter_for(self.model).image_token_ids)
        self.first = self.model.generate(**self.one, **SETTINGS, suppress_tokens=placeholders)

    def generate(self, **settings: Any) -> Tensor:
        return torch.stack(self.model.generate(**self.inputs, **{**SETTINGS, **settings}).logits, dim=1)

    def static(self) -> Tensor:
        return self.generate(cache_implementation="static", disable_compile=True)

    def forward(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(**self.inputs).logits
        return logits

    def text_generate(self) -> Tensor:
        return torch.stack(self.model.generate(**self.text, **SETTINGS).logits, dim=1)

    def text_forward(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(**self.text).logits
        return logits

    def turn(self, cache: Any) -> Tensor:
        """A second turn on a cache."""
        said = torch.full_like(self.first.sequences[:, :2], 11)
        again = longer(self.one, torch.cat([self.first.sequences, said], dim=1), self.family)
        return torch.stack(self.model.generate(**again, **SETTINGS, past_key_values=cache).logits, dim=1)

    def continued(self) -> Tensor:
        return self.turn(copy.deepcopy(self.first.past_key_values))

    def step(self) -> Tensor:
        """One more token by hand."""
        cache = copy.deepcopy(self.first.past_key_values)
        length = cache.get_seq_length()
        places = torch.full((1, 1), length)
        with torch.no_grad():
            output = self.model(
                input_ids=self.first.sequences[:, -1:],
                past_key_values=cache,
                attention_mask=torch.ones(1, length + 1, dtype=torch.long),
                position_ids=places.expand(4, 1, 1) if "qwen" in self.family else places,
            )
        logits: Tensor = output.logits
        return logits

    @property
    def calls(self) -> dict[str, Callable[[], Tensor]]:
        """The ways of calling by name."""
        return {
            "generate": self.generate,
            "static cache": self.static,
            "forward": self.forward,
            "text: generate": self.text_generate,
            "text: forward": self.text_forward,
            "second turn": self.continued,
            "step": self.step,
        }


def outcome(call: Callable[[], Tensor]) -> Outcome:
    """Call, and say what came of it."""
    try:
        return Outcome(call())
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {error}")
