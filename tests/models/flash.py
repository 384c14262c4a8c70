"""FlashAttention on the CPU: stand-ins for the kernels in plain torch, below transformers' masks and unpadding."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as utils

from tokenprune.testing.tiny.models import MakeInputs, tiny_llava

FLASH = "flash_attention_2"
calls: dict[str, int] = {"dense": 0, "packed": 0}


def one(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: tuple[int, int]) -> Tensor:
    """Attention of one sequence, (n, h, d) each; masks are aligned at the ends, as since version 2.1."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    ahead = torch.arange(k.shape[0]) - (torch.arange(q.shape[0]) + k.shape[0] - q.shape[0])[:, None]
    seen = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    if window[0] >= 0:
        seen &= ahead >= -window[0]
    if window[1] >= 0:
        seen &= ahead <= window[1]
    logits = logits.masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1).nan_to_num(0.0), v)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    assert not dropout_p
    assert not softcap
    calls["dense"] += 1
    return torch.stack([one(*row, softmax_scale, causal, window_size) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    assert not dropout_p
    assert not softcap
    calls["packed"] += 1
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        queries, keys = (slice(int(c[i]), int(c[i + 1])) for c in (cu_seqlens_q, cu_seqlens_k))
        parts.append(one(q[queries], k[keys], v[keys], softmax_scale, causal, window_size))
    return torch.cat(parts)


@contextmanager
def emulated_flash() -> Iterator[dict[str, int]]:
    """While open, transformers finds the stand-ins where it looks for the kernels; counts their calls."""
    names = [name for name in vars(utils) if name.startswith(("_flash_", "_process_", "_pad_fn", "_unpad_fn"))]
    saved = {name: getattr(utils, name) for name in [*names, "_loaded_implementation", "_lazy_imports"]}

    def imports(implementation: str | None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if implementation != FLASH:
            raise ValueError(f"no kernel is called {implementation}")
        return flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input

    calls.update(dense=0, packed=0)
    utils._loaded_implementation = None
    vars(utils)["_lazy_imports"] = imports
    try:
        yield calls
    finally:
        vars(utils).update(saved)


def use_flash(model: Any) -> Any:
    """Let every part of the model name flash as its backend, without the check that its kernels are installed."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = FLASH
    return model


@lru_cache
def flash_tiny(layers: int = 2) -> tuple[Any, MakeInputs]:
    """A tiny model on the emulated backend."""
    model, make_inputs = tiny_llava(0, layers=layers)
    model(**make_inputs(["see <0>"]), output_hidden_states=True)  # transformers puts hooks of its own on at first use
    return use_flash(model), make_inputs
