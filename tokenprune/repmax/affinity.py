"""The torch side: one matrix product per image, from which greedy selection reads row by row."""

import torch
from torch import Tensor

from tokenprune.repmax.distances import Distance, DistanceOrMatrix


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: bf16 sums stop resolving distances after some hundred tokens."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def affinity(x: Tensor, distance: DistanceOrMatrix) -> Tensor:
    """(b, n, n): larger means farther apart, up to a constant that is the same for every pair.

    For cosine it is minus the cosine, which keeps one more bit than 1 - cosine. The diagonal is that of an
    identical pair and never matters, because a kept token is masked.

    Args:
        x: (b, n, d) features, or (b, n, n) distances for "precomputed"; float32 or float64.
        distance: which distance.
    """
    if distance == "precomputed":
        return x
    if distance in ("cosine", "angular"):
        unit = unit_rows(x)
        gram = _gram(unit)
        if distance == "angular":
            # Both square roots lose half the digits near 0; that is the float32 fast path's tolerance (about 1e-4 rad).
            gram = torch.atan2((2 + 2 * gram).clamp_min(0).sqrt(), (2 - 2 * gram).clamp_min(0).sqrt())
        gram.diagonal(dim1=-2, dim2=-1).fill_(torch.pi / 2 if distance == "angular" else 1.0)
        return gram.neg_()
    return _squared_or_root(x, distance)


def _squared_or_root(x: Tensor, distance: Distance) -> Tensor:
    exponent = torch.frexp(x.abs().amax(dim=(-2, -1), keepdim=True)).exponent
    # The scale is common to all pairs of an image, so it need not be undone.
    centred = torch.ldexp(x, -exponent)
    centred = centred - centred.mean(dim=-2, keepdim=True)
    norms = centred.square().sum(-1)
    squares = torch.sub(norms.unsqueeze(-1) + norms.unsqueeze(-2), _gram(centred), alpha=2).clamp_min_(0)
    squares.diagonal(dim1=-2, dim2=-1).zero_()
    return squares.sqrt_() if distance == "euclidean" else squares


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1; a zero row stays zero. Two steps, so that no square over- or underflows."""
    x = x / x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1.0)


def _gram(x: Tensor) -> Tensor:
    if x.device.type == "cuda":
        return torch.matmul(x, x.mT)
    # One product per image: a batched product may round differently, and a batch must equal its loop, ties included.
    return torch.stack([image @ image.T for image in x])
