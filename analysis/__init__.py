"""Measurements on tokens, selections and runs."""

from tokenprune.analysis.alignment import AlignmentMeasures, AlignmentReport, analyse_alignment, measure_alignment
from tokenprune.analysis.images import AnalysedImage, bundled_images, stream_images
from tokenprune.analysis.score_parts import ScoreParts, split_score

__all__ = [
    "AlignmentMeasures",
    "AlignmentReport",
    "AnalysedImage",
    "ScoreParts",
    "analyse_alignment",
    "bundled_images",
    "measure_alignment",
    "split_score",
    "stream_images",
]
