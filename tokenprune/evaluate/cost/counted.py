"""Floating-point operations as torch's dispatcher saw them: an independent check of the formulas."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

TOLERANCE = 0.01
"""Relative disagreement between formula and counter above which one of them is wrong."""


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401
    return int(sdpa_flop_count(query, key, value))  # torch hands over shapes


# torch counts the attention kernels of accelerators and leaves that of the CPU out.
_MISSING = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class Counted:
    """What the counter saw.

    Attributes:
        total: all of it.
        modules: by the name of the module, submodules included.
    """

    total: int
    modules: dict[str, int]

    def of(self, ending: str) -> int:
        """Operations of the modules whose name ends so, but is not below another one of them.

        Raises:
            KeyError: when there is none.
        """
        found = {name: count for name, count in self.modules.items() if name.split(".")[-1] == ending}
        if not found:
            raise KeyError(f"no module called {ending!r} computed anything; there are {', '.join(self.modules)}")
        return sum(found.values())


def counted_flops(function: Callable[[], object]) -> Counted:
    """Run a function under `torch.utils.flop_counter.FlopCounterMode`.

    It counts 2 per multiply-accumulate of matrix products, convolutions and attention, and of causal attention the
    whole square; compare it with `causal="full"`. On the "meta" device nothing is computed and all is counted.

    Args:
        function: what to run, once.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
    with counter:
        function()
    modules = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return Counted(counter.get_total_flops(), modules)


def disagreement(formula: int, counted: int) -> float:
    """Relative difference, in shares of what was counted; 0 when both are 0, infinite when only that is."""
    if counted == 0:
        return 0.0 if formula == 0 else float("inf")
    return abs(formula - counted) / counted
