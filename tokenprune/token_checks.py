"""What the fields of `Tokens` must be: every check raises an error that names the field, its value and the way out."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenprune.arguments import LARGEST, brief

if TYPE_CHECKING:
    from tokenprune.tokens import Tokens

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_matrix(owner: str, name: str, value: object) -> None:
    """Raise unless `value` is a dense float matrix with at least one column.

    Raises:
        TypeError: when it is no tensor, or holds no floating point numbers that can be computed with.
        ValueError: when it is not dense or not two-dimensional, or has no column.
    """
    tensor = _check_dense(owner, name, value)
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{owner}: {name} must hold floating point numbers (float16, bfloat16, float32 or float64), got "
            f"{tensor.dtype}; {_conversion(tensor)}"
        )
    if tensor.ndim != 2:
        raise ValueError(
            f"{owner}: {name} must be two-dimensional, one image without a batch axis, got {tuple(tensor.shape)}"
        )
    if not tensor.shape[1]:
        raise ValueError(
            f"{owner}: {name} is {tuple(tensor.shape)}, so it has no column; give vectors of width 1 or more"
        )


def check_numbers(owner: str, name: str, value: object, dtype: torch.dtype, length: int) -> Tensor:
    """Return `value` when it is a dense vector of this dtype and length; raise the same kinds of error otherwise."""
    tensor = _check_dense(owner, name, value)
    kind = str(dtype).removeprefix("torch.")
    if tensor.dtype != dtype or tensor.ndim != 1 or tensor.shape[0] != length:
        raise ValueError(f"{owner}: {name} must be {kind} ({length},), got {show(tensor)}")
    return tensor


def _check_dense(owner: str, name: str, value: object) -> Tensor:
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


def check_count(name: str, value: object, *, lowest: int) -> None:
    """Raise unless `value` is None or an int of at least `lowest`.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is too small, or larger than any image.
    """
    if value is None:
        return
    wanted = f"Tokens: {name} must be None or an int of at least {lowest}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}; convert it with int()")
    if not lowest <= value < LARGEST:
        raise ValueError(f"{wanted} and below 2**53, got {brief(value)}")


def check_pair(name: str, value: object) -> None:
    """Raise unless `value` is None or a tuple of two positive ints.

    Raises:
        TypeError: when it is no tuple of ints.
        ValueError: when it has another length, or an entry below 1.
    """
    if value is None:
        return
    wanted = f"Tokens: {name} must be a tuple (rows, columns) of two positive ints"
    if not isinstance(value, tuple) or any(isinstance(part, bool) or not isinstance(part, int) for part in value):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}")
    if len(value) != 2 or not all(0 < part < LARGEST for part in value):
        raise ValueError(f"{wanted}, got {brief(value)}")


def check_place(tokens: "Tokens", *, ordered: bool) -> None:
    """Raise unless index, tiles, total, grid and what identifies the image are sound and fit together.

    Numbers in `index` and `tiles` are read where that is free, on the CPU.

    Args:
        tokens: the image.
        ordered: whether `index` must ascend.
    """
    n = tokens.n
    check_count("total", tokens.total, lowest=1)
    check_count("prompt", tokens.prompt, lowest=0)
    if tokens.key is not None and (isinstance(tokens.key, bool) or not isinstance(tokens.key, int)):
        raise TypeError(
            f"Tokens: key must be None or an int that identifies the image, got {brief(tokens.key)} of type "
            f"{type(tokens.key).__name__}; convert it with int()"
        )
    if tokens.index is not None:
        _check_index(check_numbers("Tokens", "index", tokens.index, torch.int64, n), ordered=ordered)
    if tokens.tiles is not None:
        tiles = check_numbers("Tokens", "tiles", tokens.tiles, torch.int64, n)
        if tiles.is_cpu and int(tiles.min()) < -1:
            raise ValueError(
                "Tokens: tiles must number the tile of each token from 0, -1 for tokens that end a row, got "
                f"{int(tiles.min())}"
            )
    if tokens.total is not None and tokens.total < n and tokens.index is None:
        raise ValueError(
            f"Tokens: total={tokens.total} is less than the {n} visual tokens; it counts the image before any pruning"
        )
    check_pair("grid", tokens.grid)
    check_pair("tile_grid", tokens.tile_grid)
    if tokens.grid is not None and tokens.grid[0] * tokens.grid[1] != tokens.original:
        what = "tokens" if tokens.total is None else f"tokens, which total={tokens.total} says"
        raise ValueError(
            f"Tokens: grid {tokens.grid} does not hold {tokens.original} {what} (rows x columns must equal it)"
        )


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


def check_taken(tokens: "Tokens", rows: object) -> None:
    """Raise unless `rows` are row numbers of `tokens`, each once; numbers are read on the CPU alone.

    Raises:
        TypeError: when it is no tensor, or a mask.
        ValueError: when a number is no row or repeats, or there is none.
    """
    owner = "Tokens.take"
    tensor = _check_dense(owner, "rows", rows)
    if tensor.dtype != torch.int64 or tensor.ndim != 1:
        way_out = "; a mask becomes row numbers by .nonzero().flatten()" if tensor.dtype == torch.bool else ""
        raise TypeError(f"{owner}: rows must be int64 (k,), got {show(tensor)}{way_out}")
    if tensor.device != tokens.visual.device:
        raise ValueError(
            f"{owner}: rows are on {tensor.device} but the tokens on {tokens.visual.device}; move them together"
        )
    if not tensor.shape[0]:
        raise ValueError(f"{owner}: rows is empty; an image needs at least one visual token")
    if tensor.is_cpu:
        ranked = tensor.sort().values
        if int(ranked[0]) < 0 or int(ranked[-1]) >= tokens.n or bool((ranked[1:] == ranked[:-1]).any()):
            raise ValueError(
                f"{owner}: rows must be row numbers from 0 to {tokens.n - 1}, each once, got {brief(tensor.tolist())}"
            )


def show(value: Tensor) -> str:
    """Dtype and shape, for an error message."""
    return f"{value.dtype} {tuple(value.shape)}"
