"""Running strategies on a model and a data set, and saying with what certainty one is better than another.

Modules that need transformers are imported by their own names: `tokenprune.evaluate.comparison`, `.loading`, `.runner`.
"""

from tokenprune.evaluate.folder import read_folder
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.metrics import exact_match, normalise
from tokenprune.evaluate.report import Report, Shown, read_report, write_report
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.scenes import bundled_samples
from tokenprune.evaluate.significance import McNemar, corrected, mcnemar, paired_p_value
from tokenprune.evaluate.statistics import Interval, mean_interval, paired_difference

__all__ = [
    "Interval",
    "McNemar",
    "Method",
    "Report",
    "Sample",
    "Shown",
    "bundled_samples",
    "corrected",
    "exact_match",
    "mcnemar",
    "mean_interval",
    "normalise",
    "paired_difference",
    "paired_p_value",
    "read_folder",
    "read_report",
    "write_report",
]
