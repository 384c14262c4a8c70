"""Prune one batch of prompts: the pure function under `prune` and `prune_inputs`."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.core.places import Positions
from tokenprune.core.signals import IMAGE_KEY, FromTower, Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.models.calls.refuse import refuse_embeddings, refuse_packed
from tokenprune.models.encode.clip import Clip, see
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.families.registry import adapter_for
from tokenprune.models.plan import Plan, make_plan, makes
from tokenprune.models.prompt.choose import Chosen, as_strategy, choose_all, fit_strategy, select_tokens
from tokenprune.models.prompt.dense import Prompt, build_prompt, is_placeholder, refuse_hidden
from tokenprune.models.prompt.inputs import PadIds
from tokenprune.models.prompt.pruned import Pruned, compact
from tokenprune.models.prompt.turns import CachedPrompt, check_images, continue_prompt, new_segments, overlap
from tokenprune.models.reading.vision import Vision
from tokenprune.models.wrapped.checkpointing import not_checkpointed, without_graph

Choose = Callable[[PruningStrategy | None, Prompt], Chosen]
"""From a strategy and a prompt to one selection per image."""


def prune_batch(
    adapter: Adapter,
    plan: Plan,
    inputs: Mapping[str, Any],
    *,
    forward: bool = False,
    pad: PadIds = (None, frozenset()),
    encoding: AbstractContextManager[object] | None = None,
    want: Collection[Signal] = frozenset(),
    choose: Choose = choose_all,
) -> Pruned:
    """Encode the images, build the dense prompt, choose, and drop.

    Args:
        adapter: the model's adapter.
        plan: what chooses; its parts for the decoder are left for the language model's own run.
        inputs: the model's arguments.
        forward: prepare for a plain forward instead of `generate`: dense positions count padding, and a prompt of which
            everything is kept passes untouched whatever side its padding is on.
        pad: see `build_prompt`.
        encoding: entered while the vision tower runs.
        want: signals to fill beside those that the strategy takes.
        choose: lets a strategy choose.

    Raises:
        UnsupportedError: when `attention_mask` hides visual tokens; before the images are encoded.
    """
    refuse_hidden(adapter, inputs, pad)
    vision = _encoded(adapter, plan, inputs, encoding, want)
    prompt = build_prompt(adapter, inputs, vision, forward=forward, pad=pad)
    selections, seconds, frozen = choose(plan.before, prompt)
    # Inside the decoder the last column must be the prompt's last token.
    shortcut = prompt.left_padded or (forward and not plan.cuts)
    pruned = compact(prompt, selections, positions=plan.policy, shortcut=shortcut)
    return Pruned(prompt, pruned, selections, seconds, keys=_keys_by_row(prompt), frozen=frozen)


def continue_batch(
    adapter: Adapter,
    plan: Plan,
    inputs: Mapping[str, Any],
    cached: CachedPrompt,
    *,
    pad: PadIds = (None, frozenset()),
    encoding: AbstractContextManager[object] | None = None,
) -> Pruned:
    """The same for prompts whose first part stands in a cache: only images that are not there are chosen from.

    Args:
        adapter: the model's adapter.
        plan: without parts for the decoder.
        inputs: the model's arguments for the whole conversation. Without new images the pixels may be left out.
        cached: what is in the cache.
        pad: see `build_prompt`.
        encoding: entered while the vision tower runs.

    Raises:
        UnsupportedError: when the family cannot continue a cache, or not one with gaps; when `attention_mask` hides
            visual tokens.
        ValueError: when the prompts do not continue what is in the cache.
    """
    _refuse_turn(adapter, "kept cache")
    refuse_hidden(adapter, inputs, pad)
    vision = _encoded(adapter, plan, inputs, encoding, {IMAGE_KEY})
    prompt = build_prompt(adapter, inputs, vision, pad=pad)
    seen = overlap(cached, prompt.ids, prompt.mask)
    if vision is None and bool((is_placeholder(prompt.ids, adapter) & seen.tail).any()):
        raise_missing_pixels(adapter)
    keys = {} if vision is None or vision.keys is None else dict(enumerate(vision.keys))
    check_images(prompt, keys, cached, seen)
    fresh = new_segments(prompt, seen)
    if fresh:
        _refuse_turn(adapter, "new images on a kept cache")
    selections, seconds = select_tokens(plan.before, prompt, only=fresh)
    told, pruned = continue_prompt(prompt, selections, cached, seen)
    _refuse_gaps(adapter, pruned.mask)
    by_row = _keys_by_row(prompt) if vision is not None else cached.keys
    return Pruned(told, pruned, selections, seconds, keys=by_row, cached=cached.length)


def _refuse_turn(adapter: Adapter, what: str) -> None:
    if what in adapter.reasons:
        raise UnsupportedError(
            f"prune: {type(adapter.model).__name__} does not go with {what}{adapter.because(what)}; pass the whole "
            "conversation without past_key_values"
        )


def _refuse_gaps(adapter: Adapter, mask: Tensor) -> None:
    """A sliding window counts slots: between what is used and what is new there must be none that is masked."""
    if getattr(adapter.decoder.config, "sliding_window", None) and bool((mask.diff(dim=1) < 0).any()):
        raise UnsupportedError(
            f"prune: layers of {type(adapter.model).__name__} see a window of the last slots of past_key_values, and "
            "gaps between them (new words of different length in a batch, an answer that was cut or changed) would "
            "count; continue one prompt at a time with its whole answer, or pass the conversation without "
            "past_key_values"
        )


def _encoded(
    adapter: Adapter,
    plan: Plan,
    inputs: Mapping[str, Any],
    encoding: AbstractContextManager[object] | None,
    wanted: Collection[Signal],
) -> Vision | None:
    if not adapter.has_visual(inputs):
        return None
    want = {*plan.strategy.needs, *wanted}
    with encoding or nullcontext(), not_checkpointed(_weighing_layers(adapter, plan, want)):
        return see(adapter, inputs, want, plan.tower)


def _weighing_layers(adapter: Adapter, plan: Plan, want: Collection[Signal]) -> list[nn.Module]:
    """Layers whose keys may become weights of new tokens, where checkpointing would cut those off from the tower."""
    read = any(isinstance(signal.source, FromTower) for signal in want)
    if not (torch.is_grad_enabled() and makes(plan.strategy, "merged") and read):
        return []
    return [layer for layer in adapter.vision_tower.modules() if without_graph(layer)]


def _keys_by_row(prompt: Prompt) -> tuple[tuple[int, ...], ...] | None:
    if prompt.vision is None or prompt.vision.keys is None:
        return None
    rows: list[list[int]] = [[] for _ in range(prompt.ids.shape[0])]
    for segment, key in zip(prompt.segments, prompt.vision.keys, strict=True):
        rows[segment.row].append(key)
    return tuple(map(tuple, rows))


def prune_inputs(
    model: Any,  # noqa: ANN401
    strategy: PruningStrategy | str,
    *misplaced: object,
    positions: Positions | None = None,
    clip: Clip | None = None,
    generate: bool = True,
    **inputs: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Prune a batch of prompts and hand back arguments for the model; the model is not touched.

    The same as `prune` as a pure function: `model(**prune_inputs(model, strategy, **inputs))`, or `model.generate` with
    them, which then returns the new tokens alone. Gradients flow through kept and merged tokens to the projector and to
    the vision tower; wrap the call in `torch.no_grad()` when they are not needed.

    Args:
        model: a supported transformers model.
        strategy: a strategy, or its text form.
        misplaced: nothing; what the processor returned goes by keyword, with two stars.
        positions: "original" keeps the positions of the full prompt, "compact" closes the gaps, by the rule that
            `tokenprune.models.prompt.places` states; None takes what the method's authors do.
        clip: a CLIP model beside the model, for strategies that need `Tokens.clip_visual` and `Tokens.clip_text`.
        generate: False for arguments of a plain forward only. `model.generate` counts on from the last position, which
            is wrong after a prompt that ends in an image whose last tokens were dropped; so such a prompt is refused
            unless this is False or there are `labels`.
        inputs: what the processor returned (`input_ids`, `attention_mask`, `pixel_values`, ...), and `labels`.

    Returns:
        `inputs_embeds` float (b, k, d), `attention_mask` int64 (b, k) and `position_ids` int64 (b, k), padded on the
        left; `labels` int64 (b, k) when they were given.

    Raises:
        TypeError: for an argument that does not belong to a prompt.
        ValueError: when prompts and images do not fit together, or strategy and model; when `model.generate` would
            place the next token wrongly.
    """
    if misplaced or isinstance(strategy, Mapping):
        raise TypeError(
            "prune_inputs: takes model and strategy by position and no more; pass what the processor returned with two "
            "stars, prune_inputs(model, strategy, **inputs)"
        )
    adapter = adapter_for(model)
    adapter.clip = clip
    strategy = fit_strategy(as_strategy(strategy), adapter)
    plan = make_plan(strategy, positions)
    if plan.cuts:
        raise UnsupportedError(
            f"prune_inputs: {plan.cuts[0].stages[0]!r} acts inside the language model, which no arguments can express; "
            "use the context prune(model, strategy)"
        )
    refuse_embeddings(inputs, what="prune_inputs")
    refuse_packed(inputs)
    known = {"input_ids", "attention_mask", "position_ids", "labels", *adapter.modality_keys, *adapter.length_keys}
    unknown = sorted(inputs.keys() - known)
    if unknown:
        raise TypeError(
            f"prune_inputs: {unknown[0]} is no part of a prompt; give it to the model ({', '.join(sorted(known))})"
        )
    result = prune_batch(adapter, plan, inputs)
    check_placeholders(adapter, result.prompt)
    if result.pruned.deepstack is not None:
        raise UnsupportedError(
            f"prune_inputs: {type(model).__name__} adds features to the visual tokens inside its language model, which "
            "no arguments can express; use the context prune(model, strategy)"
        )
    if generate and inputs.get("labels") is None and result.pruned.jumps():
        raise UnsupportedError(
            "prune_inputs: a prompt ends in an image whose last tokens were dropped, and no arguments can tell "
            "model.generate where the next token goes; end the prompt in text, use the context prune(model, strategy), "
            "or say generate=False for a plain forward"
        )
    return result.pruned.as_inputs()


def check_placeholders(adapter: Adapter, prompt: Prompt) -> None:
    """Raise when a prompt without pixels has image placeholders.

    Raises:
        ValueError: with the way out.
    """
    if prompt.vision is None and sum(map(len, prompt.text)) != int(prompt.mask.sum()):
        raise_missing_pixels(adapter)


def raise_missing_pixels(adapter: Adapter) -> None:
    """Raise: placeholders came without the images."""
    raise ValueError(
        f"prune: the prompt has image placeholders but {' or '.join(adapter.visual_keys)} is missing; "
        "pass everything that the processor returned, or a prompt without placeholders"
    )
