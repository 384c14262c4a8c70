"""Measurements on tokens, selections and runs."""

from tokenprune.analysis.alignment import AlignmentMeasures, AlignmentReport, analyse_alignment, measure_alignment
from tokenprune.analysis.cross_scoring import CrossScores, cross_score
from tokenprune.analysis.diagnostics import Overlap, SelectionDiagnostics, diagnose, jaccard, overlap
from tokenprune.analysis.images import AnalysedImage, bundled_images, stream_images
from tokenprune.analysis.score_parts import ScoreParts, split_score
from tokenprune.analysis.spectrum import effective_rank, participation_ratio

__all__ = [
    "AlignmentMeasures",
    "AlignmentReport",
    "AnalysedImage",
    "CrossScores",
    "Overlap",
    "ScoreParts",
    "SelectionDiagnostics",
    "analyse_alignment",
    "bundled_images",
    "cross_score",
    "diagnose",
    "effective_rank",
    "jaccard",
    "measure_alignment",
    "overlap",
    "participation_ratio",
    "split_score",
    "stream_images",
]
