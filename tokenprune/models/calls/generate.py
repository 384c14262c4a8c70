"""`generate` on a pruned prompt, so that what goes in and comes out looks as if the prompt were whole."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tokenprune.models.calls.refuse import setting
from tokenprune.models.prompt.pruned import PrunedPrompt


def generate_pruned(generate: Callable[..., Any], call: dict[str, Any], pruned: PrunedPrompt, model: nn.Module) -> Any:  # noqa: ANN401
    """Call the model's own `generate` with the pruned prompt.

    Lengths that count the prompt (`max_length`, `min_length`) keep meaning the caller's prompt; `sequences`, the
    streamer, and the caller's own processors and criteria see the caller's prompt in front of what was generated.

    Args:
        generate: the unchanged method.
        call: the caller's arguments without those that the pruned prompt replaces.
        pruned: the pruned prompt, its last token's position `placed`.
        model: the model, for its default settings.

    Returns:
        What `generate` returns.
    """
    call = _relative_lengths(call, pruned, model)
    call = _with_whole_prompt(call, pruned)
    output = generate(**{**call, **pruned.generate_kwargs(placed=True)})
    if isinstance(output, Tensor):
        return pruned.restore(output)
    output.sequences = pruned.restore(output.sequences)
    return output


def _relative_lengths(call: dict[str, Any], pruned: PrunedPrompt, model: nn.Module) -> dict[str, Any]:
    dense = pruned.dense_ids.shape[1]
    if dense == pruned.ids.shape[1]:
        return call
    changed = dict(call)
    for absolute, relative, least in (("max_length", "max_new_tokens", 1), ("min_length", "min_new_tokens", 0)):
        value = setting(absolute, call, model)
        if not value or setting(relative, call, model) is not None:
            continue
        if value - dense < least:
            if absolute == "max_length":
                raise ValueError(
                    f"prune: generate with max_length={value} leaves no room behind the prompt of {dense} columns "
                    "(lengths count the prompt before pruning); set max_new_tokens instead"
                )
            value = dense
        changed.pop(absolute, None)
        config = changed.get("generation_config")
        if config is not None and getattr(config, absolute, None) is not None:
            changed["generation_config"] = copy.deepcopy(config)
            setattr(changed["generation_config"], absolute, None)
        changed[relative] = value - dense
    return changed


def _with_whole_prompt(call: dict[str, Any], pruned: PrunedPrompt) -> dict[str, Any]:
    changed = dict(call)
    if call.get("logits_processor"):
        changed["logits_processor"] = LogitsProcessorList(_Processor(p, pruned) for p in call["logits_processor"])
    if call.get("stopping_criteria"):
        changed["stopping_criteria"] = StoppingCriteriaList(_Criterion(c, pruned) for c in call["stopping_criteria"])
    if call.get("streamer") is not None:
        changed["streamer"] = _Streamer(call["streamer"], pruned)
    allowed = call.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        cut = pruned.ids.shape[1]
        dense = pruned.dense_ids

        def prefix_allowed(prompt: int, ids: Tensor) -> Any:  # noqa: ANN401
            return allowed(prompt, torch.cat([dense[prompt].to(ids.device), ids[cut:]]))

        changed["prefix_allowed_tokens_fn"] = prefix_allowed
    return changed


class _Processor(LogitsProcessor):
    """A caller's logits processor, shown the whole prompt. Two arguments: transformers counts them."""

    def __init__(self, inner: Callable[..., Any], pruned: PrunedPrompt) -> None:
        self.inner = inner
        self.pruned = pruned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:  # noqa: ANN401
        return self.inner(self.pruned.restore(input_ids), scores)


class _Criterion(StoppingCriteria):
    """A caller's stopping criterion, shown the whole prompt."""

    def __init__(self, inner: Callable[..., Any], pruned: PrunedPrompt) -> None:
        self.inner = inner
        self.pruned = pruned

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:  # noqa: ANN401
        return self.inner(self.pruned.restore(input_ids), scores, **kwargs)


class _Streamer:
    """A caller's streamer, given the whole prompt where `generate` puts the pruned one."""

    def __init__(self, inner: Any, pruned: PrunedPrompt) -> None:  # noqa: ANN401
        self.inner = inner
        self.prompt: Tensor | None = pruned.dense_ids

    def put(self, value: Tensor) -> None:
        if self.prompt is not None:
            value, self.prompt = self.prompt.cpu(), None
        self.inner.put(value)

    def end(self) -> None:
        self.inner.end()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.inner, name)
