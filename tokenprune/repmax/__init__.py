"""RepMax: choose k of n tokens with the largest mean pairwise distance; heuristics, bounds, certificates, proofs."""

from tokenprune.repmax.certificate import Certificate, certify
from tokenprune.repmax.clouds import token_cloud
from tokenprune.repmax.exact import ExactRepMax, ExactResult, exact_repmax
from tokenprune.repmax.gap import GapRow, measure_gap
from tokenprune.repmax.greedy import GreedyRepMax, greedy_repmax, greedy_repmax_batched
from tokenprune.repmax.local_search import LocalSearchRepMax, local_search_repmax
from tokenprune.repmax.problem.distances import distance_matrix
from tokenprune.repmax.problem.objective import (
    mean_pairwise_distance,
    negative_type_defect,
    pair_sum,
    random_expectation,
)
from tokenprune.repmax.reverse import ReverseGreedyRepMax, reverse_greedy_repmax
from tokenprune.repmax.rounding import RelaxRoundRepMax, relax_round_repmax

__all__ = [
    "Certificate",
    "ExactRepMax",
    "ExactResult",
    "GapRow",
    "GreedyRepMax",
    "LocalSearchRepMax",
    "RelaxRoundRepMax",
    "ReverseGreedyRepMax",
    "certify",
    "distance_matrix",
    "exact_repmax",
    "greedy_repmax",
    "greedy_repmax_batched",
    "local_search_repmax",
    "mean_pairwise_distance",
    "measure_gap",
    "negative_type_defect",
    "pair_sum",
    "random_expectation",
    "relax_round_repmax",
    "reverse_greedy_repmax",
    "token_cloud",
]
