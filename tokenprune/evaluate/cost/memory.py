"""Peak memory of a piece of work: the CUDA allocator's, or the process's resident set."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOCATOR = "CUDA allocator, tensors alone"
RESIDENT = "resident set of the process, libraries and freed blocks not yet returned included"
NOTHING = "not measured on this system"


@dataclass
class Peak:
    """Memory at its highest, in bytes; the numbers are there when the context has been left.

    Attributes:
        what: what was counted.
        total: highest value.
        above: how much that is above the value at the start.
    """

    what: str = NOTHING
    total: int | None = None
    above: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the peak while the context is open.

    On a CUDA device the allocator's peak is set back and read again: model and tensors, without the CUDA context and
    without memory that the allocator only holds. On Linux without CUDA it is the high-water mark of the process's
    resident set, which the kernel sets back on request: what the system had to supply, to the page. Other systems have
    no mark that can be set back: both numbers stay None.

    Args:
        device: where the work runs.
    """
    peak = Peak()
    if device.type == "cuda":
        peak.what = ALLOCATOR
        torch.cuda.synchronize(device)
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.total = torch.cuda.max_memory_allocated(device)
        peak.above = peak.total - start
        return
    before = _reset()
    yield peak
    after = _resident("VmHWM")
    if before is not None and after is not None:
        peak.what, peak.total, peak.above = RESIDENT, after, max(0, after - before)


def _reset() -> int | None:
    try:
        _RESET.write_text("5", encoding="ascii")  # sets the high-water mark to the present value
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else None
