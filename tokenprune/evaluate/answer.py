"""One batch through selection, prefill and decoding, timed: the one way in which a model answers here."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.cost.flops import padded_lengths
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


class FirstToken(StoppingCriteria):
    """Never stops; notes when the first token of a `generate` call has been chosen.

    `generate` asks its stopping criteria after every token, so the first call comes after exactly one forward pass over
    the prompt and one choice: the time to the first token, measured inside the very run that gives the answer.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Note the time of the first call."""
        if self.at is None:
            self.at = now(self.device)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` gave, and when.

    Attributes:
        sequences: int64 (b, l), prompt and answer.
        prefill: seconds from the call to the first token.
        decode: seconds from the first token to the end.
        cache: keys and values as they were at the end.
        logits: (b, vocabulary) of each new token; empty unless `output_logits` was among the arguments.
    """

    sequences: Tensor
    prefill: float
    decode: float
    cache: Any
    logits: tuple[Tensor, ...] = ()


def generate_timed(model: Any, inputs: Mapping[str, Any], *, max_new_tokens: int, device: torch.device) -> Generated:  # noqa: ANN401
    """Generate greedily and time prefill and decode.

    Args:
        model: a Hugging Face model with `generate`.
        inputs: arguments of `generate`.
        max_new_tokens: length limit of the answer; an end token ends it sooner.
        device: where the model is, for synchronisation.
    """
    clock = FirstToken(device)
    start = now(device)
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        stopping_criteria=StoppingCriteriaList([clock]),
        return_dict_in_generate=True,
    )
    end = now(device)
    first = end if clock.at is None else clock.at
    return Generated(
        sequences=output.sequences,
        prefill=first - start,
        decode=end - first,
        cache=output.past_key_values,
        logits=tuple(output.logits or ()),
    )


def answer_lengths(tokens: Tensor, end_ids: frozenset[int]) -> list[int]:
    """Generated tokens per row, the end token included and padding after it not.

    Examples:
        >>> answer_lengths(torch.tensor([[5, 2, 0], [5, 6, 7]]), frozenset({2}))
        [2, 3]
    """
    lengths = []
    for row in tokens.tolist():
        ends = [i for i, token in enumerate(row) if token in end_ids]
        lengths.append(ends[0] + 1 if ends else len(row))
    return lengths


def end_ids(model: Any) -> frozenset[int]:  # noqa: ANN401
    """Give the tokens that end an answer of the model."""
    ends = model.generation_config.eos_token_id
    return frozenset() if ends is None else frozenset(ends if isinstance(ends, list) else [ends])


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
        logits: (b, vocabulary) of each new token; empty unless they were asked for.
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
    logits: tuple[Tensor, ...] = ()

    @property
    def first_token(self) -> float:
        """Seconds from the visual tokens to the first new token, selection included."""
        return self.prefill + (self.selection or 0.0)


@torch.no_grad()
def answer_timed(
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
    built = now(device) - start
    ran = answer_prompt(adapter, prompt, strategy, positions=positions, max_new_tokens=max_new_tokens, options=options)
    return replace(ran, prefill=ran.prefill + built)


@torch.no_grad()
def answer_prompt(
    adapter: Adapter,
    prompt: Prompt,
    strategy: PruningStrategy | None = None,
    *,
    selections: Sequence[Selection] | None = None,
    positions: Positions | None = None,
    max_new_tokens: int = 16,
    options: Mapping[str, Any] | None = None,
) -> Stages:
    """Answer dense prompts that are built already; see `answer_timed`.

    Args:
        adapter: the model's adapter.
        prompt: the dense prompts of the batch.
        strategy: what chooses; None for the dense model, or for `selections`.
        selections: given, these tokens are kept, one entry per image.
        positions: as `answer_timed`; "compact" for given selections unless it says otherwise.
        max_new_tokens: length limit of an answer.
        options: further arguments of `generate`; with `output_logits=True` the result has them.
    """
    device = prompt.ids.device
    start = now(device)
    plan = None if strategy is None else make_plan(place_strategy(strategy, adapter), positions)
    if selections is None:
        selections = _everything(prompt) if plan is None else select_tokens(plan.before, prompt)[0]
    pruned = compact(prompt, selections, positions=(positions or "compact") if plan is None else plan.policy)
    chosen = now(device) - start
    arguments = {**pruned.generate_kwargs(placed=True), **(options or {})}
    layers = len(adapter.decoder_layers)
    lengths, layer_tokens, inside = (pruned.ids.shape[1],) * layers, tuple[tuple[int, ...], ...](), 0.0
    before = Pruned(prompt, pruned, list(selections), 0.0)
    inside_decoder = cut_inside(adapter, plan, before) if plan is not None and plan.cuts else nullcontext()
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
        selection=None if plan is None else chosen + inside,
        prefill=out.prefill - inside,
        decode=out.decode,
        cache=out.cache,
        logits=out.logits,
    )


def _everything(prompt: Prompt) -> list[Selection]:
    counts = [segment.columns.shape[0] for segment in prompt.segments]
    return [Selection(indices=torch.arange(n, device=prompt.ids.device), total=n) for n in counts]
