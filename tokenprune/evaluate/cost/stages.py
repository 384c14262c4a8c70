"""One batch through selection, prefill and decoding, timed: what comparisons and benchmarks both measure with."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.cost.flops import padded_lengths
from tokenprune.evaluate.decode import generate_timed
from tokenprune.models import build_prompt, compact, select_tokens
from tokenprune.models.clock import now
from tokenprune.models.decoder.attach import cut_inside
from tokenprune.models.decoder.inject import ready
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.plan import make_plan
from tokenprune.models.prompt.choose import place_strategy
from tokenprune.models.prompt.dense import Prompt
from tokenprune.models.prompt.pruned import Pruned
from tokenprune.models.reading.vision import Vision


@dataclass(frozen=True, eq=False, kw_only=True)
class Stages:
    """One batch, answered.

    Attributes:
        prompt: the dense prompt.
        selections: what is left of each image behind the last stage.
        new: int64 (b, t), the generated tokens.
        lengths: columns that entered each decoder layer, padding included; one entry per layer.
        layer_tokens: for each image the visual tokens that entered each decoder layer; empty unless some were dropped
            inside the decoder.
        selection: seconds of choosing, inside the decoder too, and of building the shorter prompt; None for dense.
        prefill: seconds of embedding and merging the prompt, the forward pass over it, and the first token's choice.
        decode: seconds of all further tokens.
        cache: the keys and values as they were at the end.
    """

    prompt: Prompt
    selections: tuple[Selection, ...]
    new: Int[Tensor, "b t"]
    lengths: tuple[int, ...]
    layer_tokens: tuple[tuple[int, ...], ...]
    selection: float | None
    prefill: float
    decode: float
    cache: Any

    @property
    def first_token(self) -> float:
        """Seconds from the visual tokens to the first new token, selection included."""
        return self.prefill + (self.selection or 0.0)


@torch.no_grad()
def run_stages(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    vision: Vision,
    strategy: PruningStrategy | None,
    *,
    positions: Positions | None = None,
    max_new_tokens: int = 16,
    options: Mapping[str, Any] | None = None,
) -> Stages:
    """Answer a batch greedily and say how long each stage took, the device synchronised at every boundary.

    Args:
        adapter: the model's adapter.
        inputs: `input_ids` and `attention_mask`, int64 (b, l), on the model's device.
        vision: the encoded images.
        strategy: what chooses; None for the dense model.
        positions: "original" or "compact"; None leaves it to the strategy's authors (dense: no difference).
        max_new_tokens: length limit of an answer; an end token ends it sooner.
        options: further arguments of `generate`, such as `cache_implementation="static"`.
    """
    device = inputs["input_ids"].device
    start = now(device)
    prompt = build_prompt(adapter, inputs, vision)
    built = now(device)
    plan = None if strategy is None else make_plan(place_strategy(strategy, adapter), positions)
    selections = _everything(prompt) if plan is None else select_tokens(plan.before, prompt)[0]
    pruned = compact(prompt, selections, positions=(positions or "compact") if plan is None else plan.policy)
    chosen = now(device)
    arguments = {**pruned.generate_kwargs(placed=True), **(options or {})}
    layers = len(adapter.decoder_layers)
    lengths, layer_tokens, inside = (pruned.ids.shape[1],) * layers, tuple[tuple[int, ...], ...](), 0.0
    cuts = plan is not None and plan.cuts
    before = Pruned(prompt, pruned, selections, 0.0)
    inside_decoder = cut_inside(adapter, plan, before) if plan is not None and cuts else nullcontext()
    with ready(adapter, pruned), inside_decoder as run:
        if run is not None:
            arguments["disable_compile"] = True  # the hooks on the layers keep books in Python
        out = generate_timed(adapter.model, arguments, max_new_tokens=max_new_tokens, device=device)
    if run is not None:
        selections, inside = run.selections(), run.seconds
        layer_tokens = tuple(tuple(entering) for entering in run.counts)
        text = [columns.shape[0] for columns in prompt.text]
        lengths = padded_lengths(text, [segment.row for segment in prompt.segments], layer_tokens)
    return Stages(
        prompt=prompt,
        selections=tuple(selections),
        new=out.sequences[:, pruned.ids.shape[1] :],
        lengths=lengths,
        layer_tokens=layer_tokens,
        selection=None if plan is None else chosen - built + inside,
        prefill=built - start + out.prefill - inside,
        decode=out.decode,
        cache=out.cache,
    )


def _everything(prompt: Prompt) -> list[Selection]:
    counts = [segment.columns.shape[0] for segment in prompt.segments]
    return [Selection(indices=torch.arange(n, device=prompt.ids.device), total=n) for n in counts]
