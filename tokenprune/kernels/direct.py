"""Affinities in the precision that decides: distances from the differences of rows, cosines from a matrix product."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenprune.kernels.float64 import all_distances
from tokenprune.kernels.similarity import DistanceName, affinity, gram
from tokenprune.kernels.ties import power_of_two, precise, unit64


def points_for(x: Float[Tensor, "*b n d"], distance: DistanceName) -> Float[Tensor, "*b n d"]:
    """The rows that distances are taken between: of length 1, or of the image over a power of two."""
    if distance in ("cosine", "angular"):
        return unit64(x)
    rows = precise(x)
    largest = rows.abs().amax((-2, -1), keepdim=True)
    return rows * power_of_two(-torch.frexp(largest).exponent.clamp(-1000, 1000))


def between(
    left: Float[Tensor, "*b r d"], right: Float[Tensor, "*b n d"], distance: DistanceName
) -> Float[Tensor, "*b r n"]:
    """Distances of rows from `points_for`, any but "cosine": 0 between equal rows, and no digit lost near 0.

    Angles are half of what they are, as in `similarity.affinity`; a zero row is at a right angle to every row.
    """
    apart = _lengths(left, right)
    if distance == "sqeuclidean":
        return apart.square()
    if distance == "euclidean":
        return apart
    zero = ~left.any(-1, keepdim=True) | ~right.any(-1, keepdim=True).mT
    return torch.atan2(apart, _lengths(left, -right)).masked_fill(zero, torch.pi / 4)


def _lengths(left: Float[Tensor, "*b r d"], right: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b r n"]:
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


def matrix_of(
    x: Float[Tensor, "b n d"], distance: DistanceName, valid: Bool[Tensor, "b n"] | None = None
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b 1"]]:
    """`similarity.affinity` in the precision that decides, and the size of an entry.

    Args:
        x: (b, n, d) features, or (b, n, n) distances for "precomputed".
        distance: which distance.
        valid: False for padding, whose entries become 0.
    """
    if distance == "precomputed":
        matrix = precise(x)
        return matrix, matrix.abs().amax((1, 2))[:, None]
    points = points_for(x, distance)
    if distance == "cosine":
        matrix = gram(points, scale=-1.0)
        matrix.diagonal(dim1=1, dim2=2).fill_(-1.0)
        return matrix, matrix.new_ones((len(matrix), 1))
    matrix = between(points, points, distance)
    matrix.diagonal(dim1=1, dim2=2).zero_()  # zero rows are at a right angle to others, not to themselves
    if valid is not None:
        matrix.masked_fill_(~valid[:, None, :], 0.0).masked_fill_(~valid[:, :, None], 0.0)
    return matrix, matrix.amax((1, 2))[:, None]


def on_host_matrix(x: Float[Tensor, "n d"], distance: DistanceName) -> tuple[Float[Tensor, "n n"], float]:
    """`matrix_of` for one image in the host's memory, and for distances at the cost of a matrix product."""
    if distance in ("cosine", "precomputed"):
        matrix = affinity(x[None].double(), distance)[0]
        return matrix, 1.0 if distance == "cosine" else float(matrix.abs().max())
    matrix = torch.from_numpy(all_distances(points_for(x, distance).numpy(), distance))
    return matrix, float(matrix.max())
