"""Composable visual-token pruning for large multimodal models, with numbers that can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from tokenprune.models import Record, prune, prune_inputs, read
    from tokenprune.repmax import GreedyRepMax
    from tokenprune.trimtokenator import TrimTokenator

__version__ = "0.1.0"

# Resolved on first use, so that `tokenprune --help` stays free of torch and `import tokenprune` of transformers.
_LAZY = {
    "MIAlignment": "tokenprune.alignment",
    "NotFiniteError": "tokenprune.core.answers",
    "Keep": "tokenprune.core.budget",
    "Count": "tokenprune.core.fields",
    "Layer": "tokenprune.core.fields",
    "Share": "tokenprune.core.fields",
    "strategy": "tokenprune.core.fields",
    "BeforeDecoder": "tokenprune.core.places",
    "InDecoder": "tokenprune.core.places",
    "InTower": "tokenprune.core.places",
    "Choice": "tokenprune.core.selection",
    "Selection": "tokenprune.core.selection",
    "FromDecoder": "tokenprune.core.signals",
    "FromInputs": "tokenprune.core.signals",
    "FromStates": "tokenprune.core.signals",
    "FromTower": "tokenprune.core.signals",
    "Signal": "tokenprune.core.signals",
    "EQUIVARIANT": "tokenprune.core.strategy",
    "PLAIN": "tokenprune.core.strategy",
    "Pipeline": "tokenprune.core.strategy",
    "PruningStrategy": "tokenprune.core.strategy",
    "Scoring": "tokenprune.core.strategy",
    "Stage": "tokenprune.core.strategy",
    "Staged": "tokenprune.core.strategy",
    "parse": "tokenprune.core.text",
    "strategies": "tokenprune.core.text",
    "Tokens": "tokenprune.core.tokens",
    "GreedyRepMax": "tokenprune.repmax",
    "TrimTokenator": "tokenprune.trimtokenator",
    "Record": "tokenprune.models",
    "prune": "tokenprune.models",
    "prune_inputs": "tokenprune.models",
    "read": "tokenprune.models",
}

_MODULES = ("alignment", "baselines", "core", "kernels", "repmax", "trimtokenator")

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
    if name in _MODULES:
        return import_module(f"tokenprune.{name}")
    raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
