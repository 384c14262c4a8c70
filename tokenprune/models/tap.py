"""Reading attention rows and keys of one attention module while the fast attention backend stays on."""

import copy
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.models.compiled import outside_graphs

TAP = "tokenprune_tap"
"""Name of the attention function; it stays in the registry and does nothing for modules without an open tap."""


Reader = Callable[[Tensor, Tensor, float], Any]


class Tap:
    """What one attention module saw: fill `read`, run the model, then look at `seen`.

    Args:
        read: called with queries and keys (after rotary embedding, before grouped keys are repeated), each
            (b, h, n, d).
        backend: name of the attention implementation that does the module's work.
    """

    def __init__(self, read: Reader, backend: str) -> None:
        self.read = read
        self.backend = backend
        self.seen: list[Any] = []


_open: WeakKeyDictionary[nn.Module, Tap] = WeakKeyDictionary()


def attention_rows(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b g n d"],
    scaling: float,
    visible: Bool[Tensor, "b n"] | Bool[Tensor, "b q n"] | None = None,
) -> Float[Tensor, "b h q n"]:
    """Softmax attention of the given queries to all keys, in float32.

    Args:
        query: the wanted query rows only.
        key: all keys; h must be a multiple of g (grouped-query attention).
        scaling: factor on the inner products.
        visible: bool (b, n), False on keys that nobody attends to (padding), or (b, q, n), what each query attends to;
            None for everything.
    """
    groups = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(groups, dim=1) if groups > 1 else key
    logits = (query.float() @ keys.float().transpose(-1, -2)) * scaling
    if visible is not None:
        logits = logits.masked_fill(~(visible[:, None, None] if visible.ndim == 2 else visible[:, None]), -torch.inf)
    return torch.softmax(logits, dim=-1)


@contextmanager
def tap(module: nn.Module, read: Reader) -> Iterator[list[Any]]:
    """While open, every forward of the attention module also appends `read(queries, keys, scaling)` to the list.

    Only this module changes, and only by a copy of its config that names another attention function, which then calls
    the model's own backend: SDPA and Flash stay on everywhere.

    Args:
        module: an attention module of a transformers model (it owns a `config`).
        read: gets queries and keys as (b, h, n, d) and the scaling factor.

    Raises:
        RuntimeError: when the module has an open tap already.
    """
    if module in _open:
        raise RuntimeError(
            f"tap: {type(module).__name__} is being read already; close the first tap before opening another"
        )
    original = module.config
    changed = copy.copy(original)
    changed._attn_implementation = _name(original._attn_implementation)  # type: ignore[union-attr,arg-type]
    opened = Tap(read, original._attn_implementation)  # type: ignore[union-attr,arg-type]
    _open[module] = opened
    module.config = changed
    try:
        yield opened.seen
    finally:
        module.config = original
        del _open[module]


def tower_reader(want: Collection[str], prefix: int) -> Reader:
    """A reader for `tap` on a vision tower; row 0 of the tower is taken for the CLS token.

    Args:
        want: names of `Tokens` fields, of "cls_attention", "cls_attention_first", "cls_attention_last", "vision_keys",
            "vision_last_keys" and "vision_last_cls".
        prefix: number of leading rows that are no visual tokens (1 for a dropped CLS token).

    Returns:
        Function from queries, keys and scaling to the wanted fields, images first.
    """

    def read(query: Tensor, key: Tensor, scaling: float) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        for name in {"cls_attention", "cls_attention_first", "cls_attention_last"} & set(want):
            seen[name] = attention_rows(query[:, :, :1], key, scaling)[:, :, 0, prefix:]
        if "vision_keys" in want:
            seen["vision_keys"] = key.mean(1)[:, prefix:]
        if "vision_last_keys" in want:
            seen["vision_last_keys"] = key.transpose(1, 2).flatten(2)[:, prefix:]
        if "vision_last_cls" in want:
            seen["vision_last_cls"] = torch.stack([query[:, :, 0], key[:, :, 0]], dim=1).flatten(2)
        return seen

    return read


@outside_graphs
def _tapped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    opened = _open[module]
    scaling = kwargs.get("scaling")
    opened.seen.append(opened.read(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(opened.backend, eager)
    config: Any = module.config  # our copy
    name = config._attn_implementation
    config._attn_implementation = opened.backend  # flash looks up its kernels by this name
    try:
        result: tuple[Tensor, Tensor | None] = backend(module, query, key, value, attention_mask, **kwargs)
    finally:
        config._attn_implementation = name
    return result


def _name(backend: str) -> str:
    """A name for the attention function that models take for flash when the backend is flash."""
    if "flash" not in (backend or ""):
        return TAP
    name = f"{TAP}_{backend.replace('/', '_')}"
    AttentionInterface.register(name, _tapped)
    return name


AttentionInterface.register(TAP, _tapped)
