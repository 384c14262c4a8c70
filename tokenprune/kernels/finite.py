"""Finiteness of many tensors with one transfer from the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def all_finite(values: Sequence[Tensor]) -> list[bool]:
    """Whether each tensor holds neither NaN nor infinity.

    A finite sum proves that every term is finite, and summing reads the tensor once where `torch.isfinite` writes and
    reads masks. Only when some sum is not finite, which large numbers alone can also cause, the masks decide.

    Args:
        values: floating point tensors of any shapes and dtypes, on one device or several.

    Returns:
        One bool per tensor, in the same order.

    Examples:
        >>> all_finite([torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.full((2,), 3e38)])
        [True, False, True]
    """
    if not values:
        return []
    home = values[0].device
    with torch.no_grad():
        sums = [rough_sum(value).to(home) for value in values]
        if torch.stack(sums).sum().isfinite().item():
            return [True] * len(values)
        verdicts = torch.stack([torch.isfinite(value).all().to(home) for value in values])
    return list(map(bool, verdicts.tolist()))


def rough_sum(value: Tensor) -> Tensor:
    """The sum of all numbers in float32: finite only when every one of them is. Large finite ones can make it infinite.

    Args:
        value: floating point tensor of any shape.
    """
    # float16 ends at 65504, which a sum soon exceeds; bfloat16 and float32 have the same range.
    total = value.sum(dtype=torch.float32) if value.dtype == torch.float16 else value.sum()
    return total if total.dtype == torch.float32 else total.float()
