"""What the two benchmarks share: device, precision, bounds, and how numbers are shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from tokenprune.cli.options import Flag, Precision

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from tokenprune.evaluate.cost.roofline import Roofline


@Parameter(name="*", group="Machine and output")
@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Say where it is measured.

    Attributes:
        device: auto, cpu, cuda, cuda:1, ...
        dtype: auto is float32 on the CPU, else bfloat16.
        peak_tflops: the device's peak, for bounds (default: measured).
        bandwidth_gbs: its memory bandwidth in GB/s, likewise.
        out: where the CSV files go.
        fresh: measure rows again that are there already.
    """

    device: str = "auto"
    dtype: Precision = "auto"
    peak_tflops: float | None = None
    bandwidth_gbs: float | None = None
    out: Path = Path("runs")
    fresh: Flag = False


def place(machine: MachineOptions) -> "tuple[torch.device, torch.dtype]":
    """The device and precision that the options ask for."""
    import torch

    from tokenprune.evaluate.loading import choose_device

    device = torch.device(choose_device(machine.device))
    if machine.dtype == "auto":
        return device, torch.float32 if device.type == "cpu" else torch.bfloat16
    return device, getattr(torch, machine.dtype)


def bounds(machine: MachineOptions, device: "torch.device", dtype: "torch.dtype") -> "Roofline":
    """The roofline that the options ask for.

    Raises:
        ValueError: when a figure is not positive.
    """
    from tokenprune.evaluate.cost.roofline import roofline_of

    for name in ("peak_tflops", "bandwidth_gbs"):
        value = getattr(machine, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
    return roofline_of(
        device,
        dtype,
        flops=None if machine.peak_tflops is None else machine.peak_tflops * 1e12,
        bandwidth=None if machine.bandwidth_gbs is None else machine.bandwidth_gbs * 1e9,
    )


def new_table(*headers: str) -> "Table":
    """An empty table: the first two columns are words, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for place, header in enumerate(headers):
        words = place < 2
        least = 26 if place == 1 and len(headers) > 2 else None
        table.add_column(
            header, justify="left" if words else "right", overflow="fold", no_wrap=not words, min_width=least
        )
    return table


def number(row: dict[str, Any], name: str, unit: float = 1.0) -> str:
    """A value of a row with three digits; "-" where there is none."""
    text = row.get(name, "")
    if text in ("", None):
        return "-"
    value = float(text) / unit
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_rows(files: Mapping[Path, Sequence[Mapping[str, Any]]], *, complete: bool) -> None:
    """Print measured rows as JSON, with the files that hold them."""
    tables = {path.stem: {"file": str(path), "rows": [dict(row) for row in rows]} for path, rows in files.items()}
    print(json.dumps({"complete": complete, "tables": tables}, indent=2, ensure_ascii=False))
