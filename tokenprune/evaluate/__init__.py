"""Running strategies on a model and a data set, and saying with what certainty one is better than another.

`compare`, `Comparison`, `Settings` and `load` need transformers, which is imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenprune.evaluate.folder import read_folder
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.metrics import exact_match, normalise
from tokenprune.evaluate.report import Report, Shown, read_report, write_report
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.scenes import bundled_samples
from tokenprune.evaluate.significance import McNemar, corrected, mcnemar, paired_p_value
from tokenprune.evaluate.statistics import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    from tokenprune.evaluate.comparison import Comparison, compare
    from tokenprune.evaluate.loading import load
    from tokenprune.evaluate.settings import Settings

_LAZY = {"Comparison": "comparison", "compare": "comparison", "load": "loading", "Settings": "settings"}

__all__ = [
    "Comparison",
    "Interval",
    "McNemar",
    "Method",
    "Report",
    "Sample",
    "Settings",
    "Shown",
    "bundled_samples",
    "compare",
    "corrected",
    "exact_match",
    "load",
    "mcnemar",
    "mean_interval",
    "normalise",
    "paired_difference",
    "paired_p_value",
    "read_folder",
    "read_report",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        return getattr(import_module(f"tokenprune.evaluate.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tokenprune.evaluate' has no attribute {name!r}")
