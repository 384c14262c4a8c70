"""Composable visual-token pruning for large multimodal models, with numbers that can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenprune.alignment import MIAlignment
from tokenprune.parsing import parse
from tokenprune.pipeline import Pipeline
from tokenprune.presets import TrimTokenator
from tokenprune.registry import register, strategies
from tokenprune.repmax import GreedyRepMax
from tokenprune.strategy import PruningStrategy
from tokenprune.tokens import Selection, Tokens

if TYPE_CHECKING:
    from tokenprune.models import Record, prune, prune_inputs

__version__ = "0.1.0"

# Resolved on first use, so that `import tokenprune` stays free of transformers.
_LAZY = {"prune": "tokenprune.models", "prune_inputs": "tokenprune.models", "Record": "tokenprune.models"}

__all__ = [
    "GreedyRepMax",
    "MIAlignment",
    "Pipeline",
    "PruningStrategy",
    "Record",
    "Selection",
    "Tokens",
    "TrimTokenator",
    "parse",
    "prune",
    "prune_inputs",
    "register",
    "strategies",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
