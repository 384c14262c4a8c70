"""Choosing in full precision where a caller computes in mixed precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_autocast(device: torch.device) -> bool:
    """True inside `torch.autocast` for that kind of device, as in mixed-precision training."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """While open, products are in the precision of what is multiplied; nothing changes where they are anyway."""
    return torch.autocast(device.type, enabled=False) if in_autocast(device) else nullcontext()


def with_autocast_of_now(function: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function as it would run here, for a caller who has left this `torch.autocast`."""
    dtype = torch.get_autocast_dtype(device.type)

    def called(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return function(rows)

    return called
