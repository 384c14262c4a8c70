"""Measurements on tokens, selections and runs."""

from tokenprune.analysis.ablation import AblationReport, AblationRow, run_ablation
from tokenprune.analysis.alignment import AlignmentMeasures, AlignmentReport, analyse_alignment, measure_alignment
from tokenprune.analysis.calibration import Calibration, measure_calibration
from tokenprune.analysis.cases import Case, Told, case_slide, different, most_changed, study_cases
from tokenprune.analysis.controls import NO_CONTROLS, Controls
from tokenprune.analysis.cross_scoring import CrossScores, cross_score
from tokenprune.analysis.damage import AnswerRecord, DamageReport, analyse_damage, measure_damage
from tokenprune.analysis.diagnostics import Overlap, SelectionDiagnostics, diagnose, jaccard, overlap
from tokenprune.analysis.gap_accuracy import GapAccuracyReport, KeptSets, analyse_gap, kept_sets
from tokenprune.analysis.images import AnalysedImage, bundled_images, stream_images
from tokenprune.analysis.information import (
    InformationMeasures,
    InformationReport,
    analyse_information,
    coordinate_information,
    label_information,
    measure_information,
    question_information,
)
from tokenprune.analysis.layers import LayerReport, LayerStates, analyse_layers, stream_layers
from tokenprune.analysis.letterbox import letterboxed, padding_tokens
from tokenprune.analysis.redundancy import (
    RedundancyMeasures,
    RedundancyReport,
    analyse_redundancy,
    measure_redundancy,
)
from tokenprune.analysis.score_parts import ScoreParts, split_score
from tokenprune.analysis.spatial import SpatialMeasures, SpatialReport, analyse_spatial, measure_spatial
from tokenprune.analysis.spectrum import effective_rank, participation_ratio
from tokenprune.analysis.turns import TurnsReport, analyse_turns
from tokenprune.analysis.variants import Variant, ablation_variants
from tokenprune.analysis.within import within_correlation
from tokenprune.core.wrappers import PickOrder

__all__ = [
    "NO_CONTROLS",
    "AblationReport",
    "AblationRow",
    "AlignmentMeasures",
    "AlignmentReport",
    "AnalysedImage",
    "AnswerRecord",
    "Calibration",
    "Case",
    "Controls",
    "CrossScores",
    "DamageReport",
    "GapAccuracyReport",
    "InformationMeasures",
    "InformationReport",
    "KeptSets",
    "LayerReport",
    "LayerStates",
    "Overlap",
    "PickOrder",
    "RedundancyMeasures",
    "RedundancyReport",
    "ScoreParts",
    "SelectionDiagnostics",
    "SpatialMeasures",
    "SpatialReport",
    "Told",
    "TurnsReport",
    "Variant",
    "ablation_variants",
    "analyse_alignment",
    "analyse_damage",
    "analyse_gap",
    "analyse_information",
    "analyse_layers",
    "analyse_redundancy",
    "analyse_spatial",
    "analyse_turns",
    "bundled_images",
    "case_slide",
    "coordinate_information",
    "cross_score",
    "diagnose",
    "different",
    "effective_rank",
    "jaccard",
    "kept_sets",
    "label_information",
    "letterboxed",
    "measure_alignment",
    "measure_calibration",
    "measure_damage",
    "measure_information",
    "measure_redundancy",
    "measure_spatial",
    "most_changed",
    "overlap",
    "padding_tokens",
    "participation_ratio",
    "question_information",
    "run_ablation",
    "split_score",
    "stream_images",
    "stream_layers",
    "study_cases",
    "within_correlation",
]
