"""Reading attention rows and keys of one attention module while the fast attention backend stays on."""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.kernels.precision import without_autocast
from tokenprune.models.wrapped.compiled import outside_graphs

TAP = "tokenprune_tap"
"""Name of the attention function; it stays in the registry and does nothing for modules without an open tap."""


Reader = Callable[[Tensor, Tensor, float], Any]


class Tap:
    """What one attention module saw in one thread: fill `read`, run the model, then look at `seen`.

    Args:
        read: called with queries and keys (after rotary embedding, before grouped keys are repeated), each
            (b, h, n, d).
    """

    def __init__(self, read: Reader) -> None:
        self.read = read
        self.seen: list[Any] = []


# Taps of a module by the thread whose forwards they read: another thread's rows of the same shape must not get in.
_open: WeakKeyDictionary[nn.Module, dict[int, Tap]] = WeakKeyDictionary()
_lock = threading.Lock()
_PLAIN = "_tokenprune_plain"
"""On the changed copy of a config: the config that it is a copy of."""


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
    with without_autocast(query.device):
        logits = (query.float() @ keys.float().transpose(-1, -2)) * scaling
    if visible is not None:
        logits = logits.masked_fill(~(visible[:, None, None] if visible.ndim == 2 else visible[:, None]), -torch.inf)
    return torch.softmax(logits, dim=-1)


@contextmanager
def tap(module: nn.Module, read: Reader) -> Iterator[list[Any]]:
    """While open, every forward of the attention module also appends `read(queries, keys, scaling)` to the list.

    Only forwards of the thread that opened the tap are read; several threads may each have one open. Only this module
    changes, and only by a copy of its config that names another attention function, which then calls the model's own
    backend: SDPA and Flash stay on everywhere.

    Args:
        module: an attention module of a transformers model (it owns a `config`).
        read: gets queries and keys as (b, h, n, d) and the scaling factor.

    Raises:
        RuntimeError: when this thread has an open tap on the module already.
    """
    thread, opened = threading.get_ident(), Tap(read)
    with _lock:
        taps = _open.setdefault(module, {})
        if thread in taps:
            raise RuntimeError(
                f"tap: {type(module).__name__} is being read already; close the first tap before opening another"
            )
        taps[thread] = opened
        if len(taps) == 1:
            module.config = _changed(module.config)
    try:
        yield opened.seen
    finally:
        with _lock:
            del taps[thread]
            if not taps:
                module.config = _plain_config(module)
                del _open[module]


def _changed(config: Any) -> Any:  # noqa: ANN401
    """A copy of a config that names our attention function."""
    changed = copy.copy(config)
    changed._attn_implementation = _name(config._attn_implementation)
    vars(changed)[_PLAIN] = config
    return changed


def _plain_config(module: nn.Module) -> Any:  # noqa: ANN401
    """The module's own config, whether or not a tap is open."""
    config: Any = module.config
    return vars(config).get(_PLAIN, config)


class _Untapped:
    """An attention module as its backend must see it: with its own config, from which Flash takes a kernel's name.

    The module itself keeps the changed config meanwhile: another thread may be on its way through it.
    """

    def __init__(self, module: nn.Module, config: object) -> None:
        self.module = module
        self.config = config

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.module, name)


@outside_graphs
def _tapped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    opened = _open.get(module, {}).get(threading.get_ident())
    if opened is not None:
        scaling = kwargs.get("scaling")
        opened.seen.append(opened.read(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
    config = _plain_config(module)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)
    result: tuple[Tensor, Tensor | None] = backend(
        _Untapped(module, config), query, key, value, attention_mask, **kwargs
    )
    return result


def _name(backend: str) -> str:
    """A name for the attention function that models take for flash when the backend is flash."""
    if "flash" not in (backend or ""):
        return TAP
    name = f"{TAP}_{backend.replace('/', '_')}"
    AttentionInterface.register(name, _tapped)
    return name


AttentionInterface.register(TAP, _tapped)
