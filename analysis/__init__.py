"""Measurements on tokens, selections and runs."""

from tokenprune.analysis.alignment import AlignmentMeasures, AlignmentReport, analyse_alignment, measure_alignment
from tokenprune.analysis.controls import NO_CONTROLS, Controls
from tokenprune.analysis.cross_scoring import CrossScores, cross_score
from tokenprune.analysis.diagnostics import Overlap, SelectionDiagnostics, diagnose, jaccard, overlap
from tokenprune.analysis.images import AnalysedImage, bundled_images, stream_images
from tokenprune.analysis.redundancy import (
    RedundancyMeasures,
    RedundancyReport,
    analyse_redundancy,
    measure_redundancy,
)
from tokenprune.analysis.score_parts import ScoreParts, split_score
from tokenprune.analysis.spatial import SpatialMeasures, SpatialReport, analyse_spatial, measure_spatial
from tokenprune.analysis.spectrum import effective_rank, participation_ratio

__all__ = [
    "NO_CONTROLS",
    "AlignmentMeasures",
    "AlignmentReport",
    "AnalysedImage",
    "Controls",
    "CrossScores",
    "Overlap",
    "RedundancyMeasures",
    "RedundancyReport",
    "ScoreParts",
    "SelectionDiagnostics",
    "SpatialMeasures",
    "SpatialReport",
    "analyse_alignment",
    "analyse_redundancy",
    "analyse_spatial",
    "bundled_images",
    "cross_score",
    "diagnose",
    "effective_rank",
    "jaccard",
    "measure_alignment",
    "measure_redundancy",
    "measure_spatial",
    "overlap",
    "participation_ratio",
    "split_score",
    "stream_images",
]
