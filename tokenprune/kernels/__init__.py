"""Selection cores: similarity matrices, greedy loops and rankings for batches of images, without waiting for a device.

Every core has one set of rules and several routes to the same answer: loops in torch for any device, in NumPy where the
tokens are in the host's memory, a fused Triton kernel on GPUs, and rows on demand where the matrix would be too large
or is not worth making. `choose` decides by sizes and device.
"""

from tokenprune.kernels.centre import squared_distances
from tokenprune.kernels.choose import choose
from tokenprune.kernels.finite import all_finite
from tokenprune.kernels.images import determinant_each, pick_each
from tokenprune.kernels.rank import top_each, top_k
from tokenprune.kernels.similarity import affinity, gram, unit_rows

__all__ = [
    "affinity",
    "all_finite",
    "choose",
    "determinant_each",
    "gram",
    "pick_each",
    "squared_distances",
    "top_each",
    "top_k",
    "unit_rows",
]
