"""Running strategies on a model and a data set, and saying with what certainty one is better than another.

Modules that need transformers are imported by their own names: `tokenprune.evaluate.comparison`, `.loading`, `.runner`.
"""

from tokenprune.evaluate.folder import read_folder
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.metrics import exact_match, normalise
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.scenes import bundled_samples

__all__ = ["Method", "Sample", "bundled_samples", "exact_match", "normalise", "read_folder"]
