"""What is checked when `Tokens` are made: kinds, shapes, devices, and places in the image."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tokenprune.core.signals import FIELDS, QUESTION, TEXT, TILES, Signal

_WIDE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


@runtime_checkable
class _Bundle(Protocol):
    """The attributes of `Tokens`, whose module is above this one."""

    @property
    def visual(self) -> Tensor: ...
    @property
    def text(self) -> Tensor | None: ...
    @property
    def question(self) -> Tensor | None: ...
    @property
    def grid(self) -> tuple[int, int] | None: ...
    @property
    def index(self) -> Tensor | None: ...
    @property
    def total(self) -> int | None: ...
    @property
    def signals(self) -> Mapping[Signal, Any]: ...


def check_tokens(tokens: _Bundle) -> None:
    """Raise an error that names the argument, unless everything about one image fits together.

    Raises:
        TypeError: when an argument is no tensor of the wanted kind.
        ValueError: when shapes, devices or the grid do not fit together.
    """
    visual = tokens.visual
    check_tensor("visual", visual, None, 2)
    n, width = visual.shape
    if n == 0 or width == 0:
        raise ValueError(
            f"Tokens: visual has no {'columns' if n else 'rows'}, it is {tuple(visual.shape)}; an image needs at least "
            "one visual token, and a token at least one number"
        )
    of_visual = f"visual {tuple(visual.shape)}"
    sizes = {"n": (n, of_visual), "d": (width, of_visual)}
    parts: list[tuple[Signal, Any]] = [(TEXT, tokens.text), (QUESTION, tokens.question)]
    for signal, value in [*((s, v) for s, v in parts if v is not None), *tokens.signals.items()]:
        if not isinstance(signal, Signal):
            raise TypeError(
                f"Tokens: signals must have Signal objects as keys, got {signal!r} of type {type(signal).__name__}"
            )
        if signal in FIELDS and signal not in (TEXT, QUESTION):
            raise ValueError(
                f"Tokens: signals must not hold {signal}; it is an argument of its own or follows from one"
            )
        check_signal(signal, value, sizes, visual.device)
    if tokens.question is not None and tokens.text is None:
        raise ValueError("Tokens: question marks rows of text, but text is None; pass text=...")
    _check_places(tokens, n)


def check_signal(signal: Signal, value: object, sizes: dict[str, tuple[int, str]], device: torch.device) -> None:
    """Raise unless a value fits its signal's declaration.

    Args:
        signal: the declaration.
        value: what is claimed of the image.
        sizes: of axes that are known, and which argument told; axes of this signal are added.
        device: where tensors must be.
    """
    if signal.axes:
        shape = signal.shape
        check_tensor(signal.name, value, signal.dtype, len(shape))
        assert isinstance(value, Tensor)
        found = f"{signal} {tuple(value.shape)}"
        for place, (axis, size) in enumerate(zip(shape, value.shape, strict=True)):
            if axis == "_":
                continue
            wanted, teller = (int(axis), "") if axis.isdigit() else sizes.setdefault(axis, (size, found))
            if size != wanted:
                why = f", as in {teller}" if teller else ""
                raise ValueError(
                    f"Tokens: {signal.name} is {tuple(value.shape)} but must be ({', '.join(shape)}): axis {place} "
                    f"must have {wanted} entries{why}"
                )
        if value.device != device:
            raise ValueError(
                f"Tokens: {signal.name} is on {value.device} but visual is on {device}; move them together"
            )
    wrong = None if signal.check is None else signal.check(value)
    if wrong is not None:
        raise (TypeError if " of type " in wrong else ValueError)(f"Tokens: {signal.name} {wrong}")


def check_tensor(name: str, value: object, dtype: torch.dtype | None, ndim: int) -> None:
    """Raise unless a value is a plain tensor with numbers in it, of the wanted kind; `dtype` None: floating point.

    Raises:
        TypeError: for a value that is no tensor, or of another dtype.
        ValueError: for a tensor without readable numbers (sparse, nested, on the meta device) or of another rank.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"Tokens: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        kind = "nested" if value.is_nested else "quantised" if value.is_quantized else str(value.layout)
        raise ValueError(f"Tokens: {name} must be a dense tensor, got a {kind} one; pass one image, made dense")
    if value.is_meta:
        raise ValueError(f"Tokens: {name} is on the meta device, which holds no numbers; materialise it first")
    if dtype is None and value.is_floating_point() and value.dtype not in _WIDE:
        raise TypeError(f"Tokens: {name} is {value.dtype}, which has no arithmetic; convert it, for example .float()")
    if dtype is None and not value.is_floating_point():
        raise TypeError(f"Tokens: {name} must hold floating point numbers, got {value.dtype}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"Tokens: {name} must be {dtype}, got {value.dtype} {tuple(value.shape)}")
    if value.ndim != ndim:
        kind = {1: "one-dimensional", 2: "two-dimensional"}.get(ndim, f"{ndim}-dimensional")
        raise ValueError(f"Tokens: {name} must be {kind}, one image without a batch axis, got {tuple(value.shape)}")


def _check_places(tokens: _Bundle, n: int) -> None:
    total, grid, index = tokens.total, tokens.grid, tokens.index
    if total is not None and (isinstance(total, bool) or not isinstance(total, int)):
        raise TypeError(f"Tokens: total must be an int, got {total!r} of type {type(total).__name__}")
    if total is not None and (total < 1 or (total < n and index is None)):
        raise ValueError(f"Tokens: total={total} is less than the {n} visual tokens")
    if index is not None:
        check_tensor("index", index, torch.int64, 1)
        if index.shape != (n,):
            raise ValueError(f"Tokens: index must be int64 ({n},), got {tuple(index.shape)}")
        if index.device != tokens.visual.device:
            raise ValueError(
                f"Tokens: index is on {index.device} but visual is on {tokens.visual.device}; move them together"
            )
        ranks = index.sort().values
        if not bool((ranks[0] >= 0) & (ranks[1:] > ranks[:-1]).all()):
            raise ValueError(f"Tokens: index must hold numbers from 0 without repeats, got {index.tolist()[:12]}")
    if grid is not None:
        if not isinstance(grid, tuple | list) or len(grid) != 2 or any(type(side) is not int for side in grid):
            raise TypeError(
                f"Tokens: grid must be (rows, columns), two ints, got {grid!r} of type {type(grid).__name__}"
            )
        original = n if total is None else total
        if min(grid) <= 0 or grid[0] * grid[1] != original:
            raise ValueError(
                f"Tokens: grid {tuple(grid)} does not hold {original} tokens (rows x columns must equal it)"
            )
    tiles = tokens.signals.get(TILES)
    if tiles is not None and tiles.numel() and int(tiles.min()) < -1:
        raise ValueError(f"Tokens: tiles must be numbers from 0, or -1 for newline tokens, got {int(tiles.min())}")
