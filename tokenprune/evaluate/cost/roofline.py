"""The least time that a device needs for so much arithmetic and so many bytes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from tokenprune.evaluate.cost.timing import time_call
from tokenprune.models.clock import now


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a device can do at best, for one precision.

    Attributes:
        flops: operations per second, of matrix products without sparsity.
        bandwidth: bytes per second to and from its main memory.
        source: where the two numbers come from.
    """

    flops: float
    bandwidth: float
    source: str

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Roofline: {name} must be positive, got {getattr(self, name)}")

    def milliseconds(self, flops: float, moved: float) -> float:
        """max(flops / peak, bytes / bandwidth): nothing can be faster, real kernels are slower.

        Args:
            flops: operations.
            moved: bytes read and written, each once.

        Examples:
            >>> Roofline(flops=1e12, bandwidth=1e11, source="").milliseconds(2e9, 1e9)
            10.0
        """
        return 1000 * max(flops / self.flops, moved / self.bandwidth)

    def bound(self, flops: float, moved: float) -> Literal["compute", "memory"]:
        """Which of the two it is."""
        return "compute" if flops / self.flops >= moved / self.bandwidth else "memory"


def probed(device: torch.device, dtype: torch.dtype, *, sizes: tuple[int, ...] = (512, 1024, 2048)) -> Roofline:
    """Measure a device in some seconds: the best of many square matrix products, and of many copies of 128 MiB.

    What it finds is what this program could reach at its luckiest; other programs on the machine can only lower it.

    Args:
        device: what to measure.
        dtype: of the matrix products.
        sizes: rows and columns of the matrices.
    """
    rates = {}
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        rates[size] = 2 * size**3 / _best(functools.partial(torch.mm, left, right, out=out), device)
    source, target = (torch.ones(32 * 2**20, device=device) for _ in range(2))
    fastest = max(rates, key=lambda size: rates[size])
    return Roofline(
        flops=rates[fastest],
        bandwidth=2 * source.nbytes / _best(functools.partial(target.copy_, source), device),
        source=f"measured here: {fastest} x {fastest} matrix product, copy of {source.nbytes >> 20} MiB",
    )


def _best(work: Callable[[], object], device: torch.device, seconds: float = 1.0) -> float:
    """The shortest of many calls, in seconds."""
    begun, best = now(device), float("inf")
    for number in range(200):
        best = min(best, time_call(work, device, warmup=0, repeats=1).median / 1000)
        if number >= 5 and now(device) - begun > seconds:
            break
    return best


def roofline_of(
    device: torch.device, dtype: torch.dtype, *, flops: float | None = None, bandwidth: float | None = None
) -> Roofline:
    """Give the figures given, else measured ones.

    Args:
        device: where the work runs.
        dtype: of the work.
        flops: operations per second, when the caller knows better.
        bandwidth: bytes per second, likewise.
    """
    found = None
    if flops is None or bandwidth is None:
        found = probed(device, dtype)
    given = [name for name, value in (("flops", flops), ("bandwidth", bandwidth)) if value is not None]
    source = "" if found is None else found.source
    if given:
        source = " and ".join(filter(None, [f"{', '.join(given)} as given", source]))
    return Roofline(
        flops=flops if flops is not None else found.flops,  # type: ignore[union-attr]
        bandwidth=bandwidth if bandwidth is not None else found.bandwidth,  # type: ignore[union-attr]
        source=source,
    )
