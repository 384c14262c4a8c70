"""The one clock that everything is timed with."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, after everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
