"""Published methods and controls, one per file; the table in README.md says what each needs and where it deviates."""

from tokenprune.baselines.cdpruner import CDPruner
from tokenprune.baselines.dart import DART
from tokenprune.baselines.divprune import DivPrune
from tokenprune.baselines.fastervlm import FasterVLM
from tokenprune.baselines.fastv import FastV
from tokenprune.baselines.fitprune import FitPrune, FitPruneStage
from tokenprune.baselines.grid_pool import GridPool
from tokenprune.baselines.hired import HiRED
from tokenprune.baselines.hired_tiles import HiREDNext
from tokenprune.baselines.mustdrop import MustDrop, MustDropStage
from tokenprune.baselines.mustdrop_windows import MustDropMerge
from tokenprune.baselines.prumerge import PruMerge, PruMergePlus
from tokenprune.baselines.pyramiddrop import PyramidDrop, PyramidDropStage
from tokenprune.baselines.random_subset import Random
from tokenprune.baselines.smallest_norm import SmallestNorm
from tokenprune.baselines.sparsevlm import SparseVLM, SparseVLMStage
from tokenprune.baselines.tome import ToMe
from tokenprune.baselines.trim import TRIM
from tokenprune.baselines.uniform import UniformGrid
from tokenprune.baselines.visionzip import VisionZip
from tokenprune.baselines.vispruner import VisPruner
from tokenprune.baselines.vtw import VTW

__all__ = [
    "DART",
    "TRIM",
    "VTW",
    "CDPruner",
    "DivPrune",
    "FastV",
    "FasterVLM",
    "FitPrune",
    "FitPruneStage",
    "GridPool",
    "HiRED",
    "HiREDNext",
    "MustDrop",
    "MustDropMerge",
    "MustDropStage",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "PyramidDropStage",
    "Random",
    "SmallestNorm",
    "SparseVLM",
    "SparseVLMStage",
    "ToMe",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
]
