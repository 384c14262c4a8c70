"""What the functions of RepMax accept: tensors and arrays of real numbers, sets of rows, linear terms."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.kernels.rank import REAL_DTYPES


def check_tensor(x: torch.Tensor, owner: str, name: str) -> None:
    """Raise unless the tensor is dense and holds real numbers; nothing is read from the device.

    Raises:
        TypeError: for bool, complex, quantised or 8-bit floating point numbers.
        ValueError: for sparse, nested and meta tensors.
    """
    if x.is_nested or x.layout != torch.strided:
        raise ValueError(f"{owner}: {name} must be a dense tensor, got the layout {x.layout}; use .to_dense()")
    if x.dtype not in REAL_DTYPES:
        raise TypeError(f"{owner}: {name} must hold real numbers, got dtype {x.dtype}; convert it with .float()")
    if x.is_meta:
        raise ValueError(f"{owner}: {name} is on the device meta, where tensors hold no numbers; load them first")


def as_array(x: object, owner: str, name: str) -> NDArray[Any]:
    """Return `x` as a NumPy array of real numbers of any shape.

    Args:
        x: a tensor on any device, an array, or nested lists of numbers.
        owner: the function whose argument this is.
        name: the argument's name.

    Raises:
        TypeError: when it holds no real numbers.
        ValueError: for sparse, nested and meta tensors.
    """
    if isinstance(x, torch.Tensor):
        check_tensor(x, owner, name)
        plain = x.detach().cpu()
        return np.asarray(plain.to(torch.float64) if plain.is_floating_point() else plain)
    if np.ma.isMaskedArray(x):
        raise TypeError(f"{owner}: {name} is a masked array; fill its gaps with .filled() or leave these rows out")
    try:
        array = np.asarray(x)
    except Exception as error:
        raise TypeError(f"{owner}: {name} must be an array of real numbers: {error}") from None
    if array.dtype.kind not in "fiu" and array.size:
        raise TypeError(
            f"{owner}: {name} must hold real numbers, got dtype {array.dtype} from a {type(x).__name__}; pass a "
            "tensor or an array"
        )
    return array


__all__ = ["as_array", "check_tensor"]
