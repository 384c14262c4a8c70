"""Bytes of keys and values that a cache really holds, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """What one decoder layer's cache holds.

    Attributes:
        layer: from 0.
        rows: sequences.
        tokens: filled slots per sequence, padding included.
        slots: allocated slots per sequence; more than `tokens` in a static cache.
        bytes: of all slots, keys and values.
    """

    layer: int
    rows: int
    tokens: int
    slots: int
    bytes: int


def cache_layers(cache: Any) -> tuple[LayerCache, ...]:  # noqa: ANN401
    """Read off the tensors of a cache after a run: after pruning inside the decoder the layers differ.

    Args:
        cache: a transformers cache, such as `past_key_values` of what `generate(..., return_dict_in_generate=True)`
            gives back.

    Raises:
        TypeError: when it has no layers with keys and values.

    Examples:
        >>> import torch
        >>> from transformers import DynamicCache
        >>> cache = DynamicCache()
        >>> _ = cache.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), 0)
        >>> cache_layers(cache)
        (LayerCache(layer=0, rows=1, tokens=5, slots=5, bytes=640),)
    """
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, Sequence) or not all(isinstance(getattr(x, "keys", None), Tensor) for x in layers):
        raise TypeError(
            f"cache_layers: cache must be a filled transformers cache, got {type(cache).__name__}; take "
            "past_key_values from what generate or the model gave back"
        )
    return tuple(
        LayerCache(
            layer=number,
            rows=layer.keys.shape[0],
            tokens=int(layer.get_seq_length()),
            slots=layer.keys.shape[2],
            bytes=layer.keys.nbytes + layer.values.nbytes,
        )
        for number, layer in enumerate(layers)
    )


def kv_bytes(cache: Any) -> int:  # noqa: ANN401
    """Bytes of the whole cache."""
    return sum(layer.bytes for layer in cache_layers(cache))
