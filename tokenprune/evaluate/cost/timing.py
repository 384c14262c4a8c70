"""Medians and quartiles of repeated measurements, on the device's own clock where it has one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenprune.models.clock import now


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds over repetitions: the median and the quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Median and quartiles; None of nothing.

    Examples:
        >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    if not values:
        return None
    low, median, high = np.percentile(np.asarray(values), [25, 50, 75])
    return Spread(median=float(median), low=float(low), high=float(high))


def time_call(
    function: Callable[[], object], device: torch.device, *, warmup: int = 2, repeats: int = 10, seconds: float = 5.0
) -> Spread:
    """How long a call takes, in milliseconds.

    On a CUDA device each call stands between two events, which the device itself times: what the host does while the
    device is still busy costs nothing, launches that the device waits for do. Elsewhere the monotonic clock is read
    when the device has finished.

    Args:
        function: what to time; it must not depend on how often it is called.
        device: where it runs.
        warmup: calls before the first one that counts: allocation, choice of kernels, compilation.
        repeats: calls that count, at most.
        seconds: after so long no further call begins, but three always count.

    Raises:
        ValueError: when `warmup` is negative or `repeats` is not positive.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(
            f"time_call: warmup must be 0 or more and repeats 1 or more, got {warmup} and {repeats}; two and ten do"
        )
    for _ in range(warmup):
        function()
    once = _by_events if device.type == "cuda" else _by_clock
    begun, taken = now(device), list[float]()
    while len(taken) < repeats and (len(taken) < 3 or now(device) - begun < seconds):
        taken.append(once(function, device))
    found = spread(taken)
    assert found is not None  # at least one call
    return found


def _by_clock(function: Callable[[], object], device: torch.device) -> float:
    start = now(device)
    function()
    return 1000 * (now(device) - start)


def _by_events(function: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
    return float(start.elapsed_time(end))
