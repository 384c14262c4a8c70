"""Composable visual-token pruning for large multimodal models, with numbers that can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenprune.alignment import MIAlignment
from tokenprune.core.answers import NotFiniteError
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Count, Layer, Share, strategy
from tokenprune.core.places import BeforeDecoder, InDecoder, InTower
from tokenprune.core.selection import Choice, Selection
from tokenprune.core.signals import FromDecoder, FromInputs, FromStates, FromTower, Signal
from tokenprune.core.strategy import EQUIVARIANT, PLAIN, Pipeline, PruningStrategy, Scoring, Stage, Staged
from tokenprune.core.text import parse, strategies
from tokenprune.core.tokens import Tokens
from tokenprune.repmax import GreedyRepMax
from tokenprune.trimtokenator import TrimTokenator

if TYPE_CHECKING:
    from tokenprune.models import Record, prune, prune_inputs, read

__version__ = "0.1.0"

# Resolved on first use, so that `import tokenprune` stays free of transformers.
_LAZY = dict.fromkeys(("prune", "prune_inputs", "read", "Record"), "tokenprune.models")

__all__ = [
    "EQUIVARIANT",
    "PLAIN",
    "BeforeDecoder",
    "Choice",
    "Count",
    "FromDecoder",
    "FromInputs",
    "FromStates",
    "FromTower",
    "GreedyRepMax",
    "InDecoder",
    "InTower",
    "Keep",
    "Layer",
    "MIAlignment",
    "NotFiniteError",
    "Pipeline",
    "PruningStrategy",
    "Record",
    "Scoring",
    "Selection",
    "Share",
    "Signal",
    "Stage",
    "Staged",
    "Tokens",
    "TrimTokenator",
    "parse",
    "prune",
    "prune_inputs",
    "read",
    "strategies",
    "strategy",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
