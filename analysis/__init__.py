"""Measurements on tokens, selections and runs."""

from tokenprune.analysis.answers.ablation import ablation
from tokenprune.analysis.answers.ablation_run import AblationReport, AblationRow, run_ablation
from tokenprune.analysis.answers.calibration import Calibration, measure_calibration
from tokenprune.analysis.answers.cases import Case, Told, case_slide, cases, different, most_changed, study_cases
from tokenprune.analysis.answers.damage import damage
from tokenprune.analysis.answers.damage_measures import AnswerRecord, DamageReport, analyse_damage, measure_damage
from tokenprune.analysis.answers.gap import gap
from tokenprune.analysis.answers.gap_accuracy import GapAccuracyReport, KeptSets, analyse_gap, kept_sets
from tokenprune.analysis.answers.turns import TurnsReport, analyse_turns
from tokenprune.analysis.answers.variants import Variant, ablation_variants
from tokenprune.analysis.answers.within import within_correlation
from tokenprune.analysis.images import AnalysedImage, bundled_images, images_of, stream_images
from tokenprune.analysis.letterbox import letterboxed, padding_tokens
from tokenprune.analysis.spectrum import effective_rank, participation_ratio
from tokenprune.analysis.tokens.alignment import (
    AlignmentMeasures,
    AlignmentReport,
    alignment,
    analyse_alignment,
    measure_alignment,
)
from tokenprune.analysis.tokens.controls import NO_CONTROLS, Controls
from tokenprune.analysis.tokens.cross_scoring import CrossScores, cross_score, default_selections, diagnostics
from tokenprune.analysis.tokens.diagnostics import Overlap, SelectionDiagnostics, diagnose, jaccard, overlap
from tokenprune.analysis.tokens.information import (
    InformationMeasures,
    InformationReport,
    analyse_information,
    coordinate_information,
    information,
    label_information,
    measure_information,
    question_information,
)
from tokenprune.analysis.tokens.layers import LayerReport, LayerStates, analyse_layers, layers, stream_layers
from tokenprune.analysis.tokens.redundancy import (
    RedundancyMeasures,
    RedundancyReport,
    analyse_redundancy,
    measure_redundancy,
    redundancy,
)
from tokenprune.analysis.tokens.score_parts import ScoreParts, split_score
from tokenprune.analysis.tokens.spatial import SpatialMeasures, SpatialReport, analyse_spatial, measure_spatial, spatial
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
    "ablation",
    "ablation_variants",
    "alignment",
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
    "cases",
    "coordinate_information",
    "cross_score",
    "damage",
    "default_selections",
    "diagnose",
    "diagnostics",
    "different",
    "effective_rank",
    "gap",
    "images_of",
    "information",
    "jaccard",
    "kept_sets",
    "label_information",
    "layers",
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
    "redundancy",
    "run_ablation",
    "spatial",
    "split_score",
    "stream_images",
    "stream_layers",
    "study_cases",
    "within_correlation",
]
