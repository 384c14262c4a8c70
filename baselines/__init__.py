"""Published methods and controls, one per file; the table in README.md says what each needs and where it deviates."""

from tokenprune.baselines.grid_pool import GridPool
from tokenprune.baselines.random_subset import Random
from tokenprune.baselines.uniform import UniformGrid

__all__ = ["GridPool", "Random", "UniformGrid"]
