"""Ways of calling a model that cannot be pruned correctly are refused before anything is computed."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from tokenprune.models.errors import UnsupportedError
from tokenprune.models.plan import Plan
from tokenprune.models.prompt.cache_state import cached_length, refuse_state
from tokenprune.models.prompt.labels import IGNORED
from tokenprune.models.prompt.turns import CachedPrompt
from tokenprune.models.wrapped.checkpointing import can_arrange, checkpointed

# Setting of `generate` -> why not, and what to do.
_GENERATE = {
    "assistant_model": "assisted decoding feeds the assistant the full prompt, whose length no longer fits; drop it",
    "prompt_lookup_num_tokens": "prompt lookup is a kind of assisted decoding and is not supported yet; drop it",
    "assistant_early_exit": "assisted decoding is not supported; drop it",
    "prefill_chunk_size": "chunked prefill cannot split a prompt given as embeddings; set it to None",
    "custom_generate": "a custom decoding loop may rebuild masks and positions of the full prompt; drop it",
    "token_healing": "token healing rewrites prompt ids after the embeddings are made; switch it off",
    "encoder_repetition_penalty": "it needs the prompt's ids where generate has embeddings; use repetition_penalty",
    "encoder_no_repeat_ngram_size": "it needs the prompt's ids where generate has embeddings; use no_repeat_ngram_size",
}
_NEUTRAL = {"encoder_repetition_penalty": 1.0}  # values that switch a setting off, beside None, False and 0


def setting(name: str, call: Mapping[str, Any], model: nn.Module) -> Any:  # noqa: ANN401
    """A setting of `generate`: from the call, else from its generation_config, else from the model's."""
    values = (call.get(name), getattr(call.get("generation_config"), name, None))
    found = next((value for value in values if value is not None), None)
    return getattr(getattr(model, "generation_config", None), name, None) if found is None else found


def refuse_generate(call: Mapping[str, Any], model: nn.Module) -> None:
    """Raise for settings of `generate` that do not go with pruned prompts.

    Raises:
        UnsupportedError: naming the setting and the way out.
    """
    for name, reason in _GENERATE.items():
        value = setting(name, call, model)
        if value is not None and value is not False and value != 0 and value != _NEUTRAL.get(name):
            raise UnsupportedError(f"prune: generate with {name}={_show(value)} cannot be pruned: {reason}")
    if setting("cache_implementation", call, model) == "paged":
        raise UnsupportedError(
            "prune: generate with cache_implementation='paged' cannot be pruned: it takes ids only; "
            "use 'dynamic' or 'static'"
        )


def refuse_cache(cache: object, *, what: str) -> None:
    """Raise when a cache that is not empty comes with images and nobody knows what it holds.

    Raises:
        UnsupportedError: with the way out.
    """
    if cached_length(cache):
        raise UnsupportedError(
            f"prune: {what} with past_key_values that already hold {cached_length(cache)} columns is not supported: "
            "a pruned prompt is shorter than its ids, and nobody knows what stands in these columns, because they do "
            "not come from a generate in a prune context; pass the whole conversation with a cache from such a call, "
            "or without a cache (it is pruned again, the same way)"
        )


def refuse_continuing(state: CachedPrompt | str, call: Mapping[str, Any], plan: Plan, length: int) -> CachedPrompt:
    """The state of a cache, when this call can continue it.

    Raises:
        UnsupportedError: with the way out.
    """
    if isinstance(state, str):
        refuse_state(state)
    head = "prune: these past_key_values cannot be continued"
    way_out = "pass the whole conversation without past_key_values"
    if state.length != length:
        raise UnsupportedError(
            f"{head}: they hold {length} columns, but {state.length} when generate handed them over; {way_out}"
        )
    if plan.cuts:
        raise UnsupportedError(
            f"{head} with {plan.cuts[0].stages[0]!r}, which acts inside the language model and would have to follow "
            f"layers of different lengths; {way_out}"
        )
    if plan.policy != state.policy:
        raise UnsupportedError(
            f"{head} with positions={plan.policy!r}: they were filled with positions={state.policy!r}; use the same"
        )
    if call.get("position_ids") is not None:
        raise UnsupportedError(f"{head} with position_ids: positions go on from the cache; leave them out")
    return state


def refuse_in_decoder(
    call: Mapping[str, Any], model: nn.Module, layers: Iterable[nn.Module] = (), *, what: str
) -> None:
    """Raise for calls that pruning inside the language model cannot follow.

    Args:
        call: the arguments.
        model: the whole model.
        layers: its decoder layers.
        what: "generate" or "a forward".

    Raises:
        UnsupportedError: naming the argument and the way out.
    """
    head = f"prune: {what} with a stage inside the decoder"
    again = [layer for layer in layers if checkpointed(layer)]
    if again and (what == "generate" or not all(map(can_arrange, again))):
        raise UnsupportedError(
            f"{head} does not go with gradient checkpointing in training mode, which "
            + (
                "leaves the cache empty; call model.eval() before"
                if what == "generate"
                else f"{type(again[0]).__name__} does otherwise than transformers' layers; switch it off"
            )
        )
    if what != "generate":
        return
    if call.get("labels") is not None:
        raise UnsupportedError(f"{head} makes no loss; leave labels out, or call the model itself")
    if setting("use_cache", call, model) is False:
        raise UnsupportedError(f"{head} needs the cache, in which the dropped tokens are missing; set use_cache=True")
    kind = setting("cache_implementation", call, model)
    given = call.get("past_key_values")
    if given is not None:
        kind = {"DynamicCache": "dynamic", "StaticCache": "static"}.get(type(given).__name__, type(given).__name__)
    if kind not in (None, "dynamic", "static"):
        raise UnsupportedError(
            f"{head} supports dynamic and static caches, not {kind!r}: its layers may not be able to hold different "
            "numbers of tokens; leave it out"
        )
    guidance = setting("guidance_scale", call, model)
    if guidance not in (None, 1, 1.0):
        raise UnsupportedError(
            f"{head} does not go with guidance_scale={guidance}, which runs a second prompt in between; drop it"
        )


def refuse_embeddings(call: Mapping[str, Any], *, what: str) -> None:
    """Raise when the caller hands over what the images have already gone into.

    Raises:
        UnsupportedError: with the way out.
    """
    for name in ("inputs_embeds", "mm_encoder_outputs"):
        if call.get(name) is not None:
            raise UnsupportedError(
                f"prune: {what} with {name} cannot be pruned: visual tokens cannot be told from text there; pass "
                "input_ids and pixel_values, or call the model outside the context"
            )


def refuse_columns(call: Mapping[str, Any], known: Collection[str], shape: tuple[int, int]) -> None:
    """Raise for arguments with one entry per prompt column that nobody would cut to the pruned prompt.

    Raises:
        UnsupportedError: naming the argument.
    """
    for name, value in call.items():
        if name in known or not isinstance(value, Tensor):
            continue
        if tuple(value.shape[:2]) == shape or (value.ndim >= 2 and tuple(value.shape[-2:]) == shape):
            raise UnsupportedError(
                f"prune: {name} of shape {tuple(value.shape)} has one entry per prompt column and is unknown here, so "
                "it would not fit the pruned prompt; leave it out, or use an adapter whose length_keys name it"
            )
    if isinstance(call.get("logits_to_keep"), Tensor):
        raise UnsupportedError(
            "prune: logits_to_keep as a tensor names columns of the full prompt; pass a number, or pick from the "
            "logits through record.calls[-1].columns"
        )


_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def refuse_packed(call: Mapping[str, Any]) -> None:
    """Raise for several sequences packed into one row, which would see each other in a pruned prompt.

    transformers tells them apart by positions that begin anew, or by arguments that count columns of the full prompt.

    Raises:
        UnsupportedError: naming the argument.
    """
    name = next((name for name in _PACKING if call.get(name) is not None), None)
    positions = call.get("position_ids")
    if name is None and call.get("attention_mask") is None and isinstance(positions, Tensor) and positions.ndim == 2:
        name = "position_ids" if bool((positions.diff(dim=1) <= 0).any()) else None
    if name is not None:
        raise UnsupportedError(
            f"prune: {name} tells of several sequences packed into one row, which is not supported; give every "
            "sequence a row of its own, padded, with an attention_mask"
        )


def refuse_visual_labels(call: Mapping[str, Any], visual: Bool[Tensor, "b l"]) -> None:
    """Raise when labels of image placeholders were counted for a loss in which dropped ones are missing.

    Args:
        call: the arguments, `num_items_in_batch` among them.
        visual: True on placeholders.

    Raises:
        ValueError: with the way out.
    """
    labels = call.get("labels")
    if (
        isinstance(labels, Tensor)
        and labels.shape == visual.shape
        and bool(((labels.to(visual.device) != IGNORED) & visual).any())
    ):
        raise ValueError(
            f"prune: labels has entries other than {IGNORED} at image placeholders, and num_items_in_batch, by which "
            f"the loss is divided, counts them, but some of these columns are dropped; set labels to {IGNORED} where "
            "input_ids are image placeholders"
        )


def _show(value: object) -> str:
    return f"<{type(value).__name__}>" if isinstance(value, nn.Module) or callable(value) else repr(value)
