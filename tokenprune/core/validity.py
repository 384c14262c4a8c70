"""What the parts of `Tokens` must be: every check raises an error that names the part, its value and the way out."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tokenprune.arguments import LARGEST, brief
from tokenprune.core.signals import FIELDS, QUESTION, TEXT, TILES, Signal, wrong_pair

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def check_tokens(tokens: _Bundle, *, ordered: bool = True) -> None:
    """Raise unless everything about one image fits together.

    Numbers in `index` and `tiles` are read on the CPU alone, because reading makes the program wait for any other
    device.

    Args:
        tokens: the image.
        ordered: whether `index` must ascend.

    Raises:
        TypeError: when an argument is no tensor of the wanted kind.
        ValueError: when shapes, devices, numbers or the grid do not fit together.
    """
    visual = tokens.visual
    check_matrix("Tokens", "visual", visual)
    n, width = visual.shape
    if n == 0:
        raise ValueError("Tokens: visual has no rows; an image needs at least one visual token")
    if visual.is_meta:
        raise ValueError(
            "Tokens: visual is on the device meta, where tensors hold no numbers; load the model's weights first"
        )
    sizes = {axis: (size, f"visual {tuple(visual.shape)}") for axis, size in (("n", n), ("d", width))}
    parts: list[tuple[Signal, Any]] = [(TEXT, tokens.text), (QUESTION, tokens.question)]
    for signal, value in [*((s, v) for s, v in parts if v is not None), *tokens.signals.items()]:
        if not isinstance(signal, Signal):
            raise TypeError(
                f"Tokens: signals must have Signal objects as keys, got {brief(signal)} of type {type(signal).__name__}"
            )
        if signal in FIELDS and signal not in (TEXT, QUESTION):
            raise ValueError(
                f"Tokens: signals must not hold {signal}; it is an argument of its own or follows from one"
            )
        if signal is QUESTION and tokens.text is None:
            raise ValueError("Tokens: question is a mask over the rows of text, which is None; give text as well")
        check_signal(signal, value, sizes, visual.device)
    _check_place(tokens, n, ordered=ordered)


def check_signal(signal: Signal, value: object, sizes: dict[str, tuple[int, str]], device: torch.device) -> None:
    """Raise unless a value fits its signal's declaration.

    Args:
        signal: the declaration.
        value: what is claimed of the image.
        sizes: of axes that are known, and which argument told; axes of this signal are added.
        device: where tensors must be.
    """
    if signal.axes:
        _check_axes(signal, value, sizes, device)
    wrong = None if signal.check is None else signal.check(value)
    if wrong is not None:
        raise (TypeError if " of type " in wrong else ValueError)(f"Tokens: {signal.name} {wrong}")


def _check_axes(signal: Signal, value: object, sizes: dict[str, tuple[int, str]], device: torch.device) -> None:
    shape = signal.shape
    if signal.dtype is None:
        tensor = check_floats("Tokens", signal.name, value, len(shape))
    else:
        tensor = check_dense("Tokens", signal.name, value)
        if tensor.dtype != signal.dtype or tensor.ndim != len(shape):
            kind = str(signal.dtype).removeprefix("torch.")
            raise ValueError(f"Tokens: {signal.name} must be {kind} ({', '.join(shape)},), got {show(tensor)}")
    found = f"{signal} {tuple(tensor.shape)}"
    for place, (axis, size) in enumerate(zip(shape, tensor.shape, strict=True)):
        if axis == "_":
            wanted, teller = size, ""
        else:
            wanted, teller = (int(axis), "") if axis.isdigit() else sizes.setdefault(axis, (size, found))
        if size != wanted:
            why = f", as in {teller}" if teller else ""
            entries = "entry" if wanted == 1 else "entries"
            raise ValueError(
                f"Tokens: {signal.name} is {tuple(tensor.shape)} but must be ({', '.join(shape)}): axis {place} must "
                f"have {wanted} {entries}{why}"
            )
        if not size and signal.token_axis is not None:
            raise ValueError(f"Tokens: {signal.name} is {tuple(tensor.shape)} but must have at least one row")
    if tensor.device != device:
        raise ValueError(f"Tokens: {signal.name} is on {tensor.device} but visual is on {device}; move them together")


def check_floats(owner: str, name: str, value: object, ndim: int) -> Tensor:
    """Return `value` when it is a dense float tensor that can be computed with, its last axis not empty.

    Raises:
        TypeError: when it is no tensor, or holds no floating point numbers that can be computed with.
        ValueError: when it is not dense, has another number of axes, or no column.
    """
    tensor = check_dense(owner, name, value)
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{owner}: {name} must hold floating point numbers (float16, bfloat16, float32 or float64), got "
            f"{tensor.dtype}; {_conversion(tensor)}"
        )
    if tensor.ndim != ndim:
        kind = {1: "one-dimensional", 2: "two-dimensional"}.get(ndim, f"{ndim}-dimensional")
        raise ValueError(f"{owner}: {name} must be {kind}, one image without a batch axis, got {tuple(tensor.shape)}")
    if not tensor.shape[-1]:
        raise ValueError(
            f"{owner}: {name} is {tuple(tensor.shape)}, so it has no column; give vectors of width 1 or more"
        )
    return tensor


def check_matrix(owner: str, name: str, value: object) -> None:
    """Raise unless `value` is a dense float matrix with at least one column; see `check_floats`."""
    check_floats(owner, name, value, 2)


def check_dense(owner: str, name: str, value: object) -> Tensor:
    """Return `value` when it is a dense tensor.

    Raises:
        TypeError: when it is no tensor.
        ValueError: when it is nested or sparse.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{owner}: {name} must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor"
        )
    if value.is_nested:
        raise ValueError(f"{owner}: {name} is a nested tensor, which holds several images; give one Tokens for each")
    if value.layout != torch.strided:
        raise ValueError(f"{owner}: {name} has the layout {value.layout}; make it dense with .to_dense()")
    return value


def _conversion(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "convert it with .dequantize()"
    if tensor.is_complex():
        return "choose a real part, such as .abs()"
    return "convert it with .float()"


def _check_place(tokens: _Bundle, n: int, *, ordered: bool) -> None:
    """Raise unless index, tiles, total and grid are sound and fit together."""
    total, grid = tokens.total, tokens.grid
    if total is not None:
        wanted = "Tokens: total must be None or an int of at least 1"
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"{wanted}, got {brief(total)} of type {type(total).__name__}; convert it with int()")
        if not 1 <= total < LARGEST:
            raise ValueError(f"{wanted} and below 2**53, got {brief(total)}")
    if tokens.index is not None:
        index = check_dense("Tokens", "index", tokens.index)
        if index.dtype != torch.int64 or tuple(index.shape) != (n,):
            raise ValueError(f"Tokens: index must be int64 ({n},), got {show(index)}")
        if index.device != tokens.visual.device:
            raise ValueError(
                f"Tokens: index is on {index.device} but visual is on {tokens.visual.device}; move them together"
            )
        _check_index(index, ordered=ordered)
    tiles = tokens.signals.get(TILES)
    if tiles is not None and tiles.is_cpu and int(tiles.min()) < -1:
        raise ValueError(
            "Tokens: tiles must number the tile of each token from 0, -1 for tokens that end a row, got "
            f"{int(tiles.min())}"
        )
    if total is not None and total < n and tokens.index is None:
        raise ValueError(
            f"Tokens: total={total} is less than the {n} visual tokens; it counts the image before any pruning"
        )
    if grid is not None:
        _check_grid(grid, n, total)


def _check_grid(grid: tuple[int, int], n: int, total: int | None) -> None:
    wrong = wrong_pair(grid)
    if wrong is not None:
        raise (TypeError if " of type " in wrong else ValueError)(f"Tokens: grid {wrong}")
    if grid[0] * grid[1] != (n if total is None else total):
        what = f"{n} tokens" if total is None else f"{total} tokens, which total={total} says"
        raise ValueError(f"Tokens: grid {grid} does not hold {what} (rows x columns must equal it)")


def _check_index(index: Tensor, *, ordered: bool) -> None:
    if not index.is_cpu:
        return
    if ordered:
        good = bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < LARGEST
    else:
        good = int(index.min()) >= 0 and int(index.max()) < LARGEST
    if not good:
        raise ValueError(
            "Tokens: index must hold the place of each row in the original image, ascending from 0 on and each once, "
            f"got {brief(index.tolist())}; sort the rows by their places, or take them from the whole image with "
            "Tokens.take"
        )


def check_taken(visual: Tensor, rows: object) -> None:
    """Raise unless `rows` are row numbers of `visual`, each once; numbers are read on the CPU alone.

    Raises:
        TypeError: when it is no tensor, or a mask.
        ValueError: when a number is no row or repeats, or there is none.
    """
    owner = "Tokens.take"
    tensor, n = check_dense(owner, "rows", rows), visual.shape[0]
    if tensor.dtype != torch.int64 or tensor.ndim != 1:
        way_out = "; a mask becomes row numbers by .nonzero().flatten()" if tensor.dtype == torch.bool else ""
        raise TypeError(f"{owner}: rows must be int64 (k,), got {show(tensor)}{way_out}")
    if tensor.device != visual.device:
        raise ValueError(f"{owner}: rows are on {tensor.device} but the tokens on {visual.device}; move them together")
    if not tensor.shape[0]:
        raise ValueError(f"{owner}: rows is empty; an image needs at least one visual token")
    if tensor.is_cpu:
        ranked = tensor.sort().values
        if int(ranked[0]) < 0 or int(ranked[-1]) >= n or bool((ranked[1:] == ranked[:-1]).any()):
            raise ValueError(
                f"{owner}: rows must be row numbers from 0 to {n - 1}, each once, got {brief(tensor.tolist())}"
            )


def check_new(visual: Tensor, name: str, value: object, rows: int | None) -> None:
    """Raise unless new token vectors are like those of `visual`; `rows` is None for any number of them."""
    made = check_floats("Tokens.take", name, value, 2)
    wanted = (made.shape[0] if rows is None else rows, visual.shape[1])
    if made.shape != wanted or made.dtype != visual.dtype or made.device != visual.device:
        raise ValueError(
            f"Tokens.take: {name} must be {visual.dtype} {wanted} on {visual.device}, got {show(made)} on {made.device}"
        )


def show(value: Tensor) -> str:
    """Write dtype and shape, for an error message."""
    return f"{value.dtype} {tuple(value.shape)}"
