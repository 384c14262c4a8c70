"""What a strategy may answer: the checks of `Selection` that need no number from the device."""

import numpy as np
import torch
from torch import Tensor

from tokenprune.tokens import Selection, StageCount, Tokens

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NotFiniteError(ValueError, RuntimeError):
    """A method made token vectors that hold NaN or infinity.

    Either the numbers that it got are too large for its arithmetic, which is a matter of the input (a ValueError), or
    the method is wrong (a RuntimeError); nobody can tell from outside.
    """


def check_answers(title: str, selections: object, images: int) -> None:
    """Raise unless a strategy gave a list with one `Selection` per image."""
    if not isinstance(selections, list | tuple):
        raise RuntimeError(f"{title}: _select_batch must return a list of Selection, got {type(selections).__name__}")
    if len(selections) != images:
        raise RuntimeError(f"{title}: returned {len(selections)} selections for {images} images")
    for selection in selections:
        if not isinstance(selection, Selection):
            raise RuntimeError(f"{title}: _select must return a Selection, got {type(selection).__name__}")


def check_form(title: str, tokens: Tokens, selection: Selection) -> None:
    """Raise unless all fields of an answer have the kind, shape, dtype and device that they must have.

    Raises:
        RuntimeError: naming the strategy and the field.
    """
    device = tokens.visual.device
    indices = _dense(title, "indices", selection.indices)
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise RuntimeError(f"{title}: indices must be int64 (k,), got {_show(indices)}")
    if indices.device != device:
        raise RuntimeError(f"{title}: indices are on {indices.device}, the tokens on {device}")
    k, width = indices.shape[0], tokens.visual.shape[1]
    if selection.order is not None:
        order = _dense(title, "order", selection.order)
        if order.dtype != torch.int64 or order.shape != (k,) or order.device != device:
            raise RuntimeError(
                f"{title}: order must be int64 ({k},) on {device}, the rows of indices in the order of the picks, got "
                f"{_show(order)} on {order.device}"
            )
    for name, length in (("gains", k), ("scores", tokens.n), ("sizes", k)):
        if getattr(selection, name) is not None:
            value = _dense(title, name, getattr(selection, name))
            if value.dtype not in _FLOATS or value.shape != (length,) or value.device != device:
                raise RuntimeError(
                    f"{title}: {name} must be floating point ({length},) on {device}, got {_show(value)} on "
                    f"{value.device}"
                )
    for name in ("features", "extra"):
        if getattr(selection, name) is not None:
            made = _dense(title, name, getattr(selection, name))
            wanted = (k if name == "features" else made.shape[0] if made.ndim else 0, width)
            if made.shape != wanted or made.dtype != tokens.visual.dtype or made.device != device:
                raise RuntimeError(
                    f"{title}: {name} must be {tokens.visual.dtype} {wanted} on {device}, got {_show(made)} on "
                    f"{made.device}"
                )
            if made.requires_grad and not _any_grad(tokens):
                raise RuntimeError(
                    f"{title}: {name} carry a gradient, but no field of the tokens does; detach what is learned"
                )
    if not isinstance(selection.stages, tuple) or any(not isinstance(s, StageCount) for s in selection.stages):
        raise RuntimeError(f"{title}: stages must be a tuple of StageCount, got {selection.stages!r}")


def on_host(selection: Selection) -> bool:
    """Whether the numbers of a selection can be read without waiting for a device."""
    return selection.indices.is_cpu


def rows_hold(selection: Selection, n: int, *, ascending: bool) -> bool:
    """Whether the indices of a selection on the CPU are unique rows below n, in order, and `order` holds the same.

    Args:
        selection: an answer that passed `check_form`.
        n: number of tokens selected from.
        ascending: whether the indices must ascend.
    """
    if not selection.kept:  # a method that withdraws the image
        return True
    # NumPy: for so few numbers each call into torch costs more than the work.
    rows = selection.indices.numpy()
    rows = rows if ascending else np.sort(rows)
    if rows[0] < 0 or rows[-1] >= n or not (rows[1:] > rows[:-1]).all():
        return False
    return selection.order is None or bool((np.sort(selection.order.numpy()) == rows).all())


def _dense(title: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise RuntimeError(f"{title}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided:
        raise RuntimeError(f"{title}: {name} must be a dense tensor, got the layout {value.layout}; use .to_dense()")
    return value


def _any_grad(tokens: Tokens) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in vars(tokens).values())


def _show(value: Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}"
