"""Similarity matrices at the cost of little more than half a matrix product, written where they are needed."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

DistanceName: TypeAlias = Literal["cosine", "euclidean", "sqeuclidean", "angular", "precomputed"]

# Half of a symmetric product is worth computing alone from these sizes on (benchmarks/results/selection_gram.csv).
_HALF_FROM = 512
_BANDS = 4
# Columns per partial product: every entry is then summed in one order, whatever the band it lies in, so that equal
# rows have equal entries.
_COLUMNS = 512
_BLOCK_ROWS = 128
# Norms between which no square over- or underflows; outside, zero rows included, rows are scaled in two steps.
_SAFE = (1e-15, 1e15)


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: bf16 sums stop resolving distances after some hundred tokens."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unit_rows(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
    """Rows of length 1, in a new tensor; a zero row stays zero. Two steps, so that no square over- or underflows.

    Examples:
        >>> unit_rows(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # Two passes that write nothing take half the time of x.abs().amax(); torch.aminmax along an axis is slow.
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    result = torch.div(x, largest.clamp_min_(torch.finfo(x.dtype).tiny))
    return result.div_(torch.linalg.vector_norm(result, dim=-1, keepdim=True).clamp_min_(1.0))


def affinity(
    x: Float[Tensor, "b n d"], distance: DistanceName, *, out: Float[Tensor, "b n n"] | None = None
) -> Float[Tensor, "b n n"]:
    """Larger means farther apart, up to a constant and a factor that are the same for every pair of an image.

    For cosine it is minus the cosine, which keeps one more bit than 1 - cosine. The diagonal is that of an
    identical pair and never matters, because a kept token is masked.

    Beside the result it holds one image in working precision (on a GPU, the batch); for the cosine of many long rows
    on a CPU only `_COLUMNS` columns of one.

    Args:
        x: (b, n, d) features of any real dtype, or (b, n, n) distances for "precomputed".
        distance: which distance.
        out: where to write; rows must be contiguous. Not for "precomputed", which returns `x` in working precision.
    """
    dtype = working_dtype(x)
    if distance == "precomputed":
        return x.to(dtype)
    batch, n, _ = x.shape
    result = torch.empty((batch, n, n), dtype=dtype, device=x.device) if out is None else out
    if x.device.type != "cpu":
        _fill(x, distance, result)
        return result
    for image, matrix in zip(x, result, strict=True):
        # One product per image: a batched product may round differently, and a batch must equal its loop.
        _fill(image, distance, matrix)
    return result


def _fill(x: Float[Tensor, "*b n d"], distance: DistanceName, out: Float[Tensor, "*b n n"]) -> None:
    norms = None
    if x.ndim == 2 and distance in ("cosine", "angular") and _in_bands(x):
        _unit_gram(x, out, FACTOR[distance])
    else:
        points, norms = prepare(x.to(out.dtype), distance)
        gram(points, out=out, scale=FACTOR[distance])
    diagonal = out.diagonal(dim1=-2, dim2=-1)
    if norms is None:
        diagonal.fill_(FACTOR[distance])
    if distance == "cosine":
        return
    for rows, own in zip(_row_blocks(out), _row_blocks(out[..., :1] if norms is None else norms.mT), strict=True):
        finish(rows, own, norms, distance)
    if norms is not None:
        diagonal.zero_()


FACTOR: dict[str, float] = {"cosine": -1.0, "angular": 1.0, "euclidean": -2.0, "sqeuclidean": -2.0}
"""What `finish` wants the products of prepared rows multiplied by."""


def prepare(
    x: Float[Tensor, "*b n d"], distance: DistanceName
) -> tuple[Float[Tensor, "*b n d"], Float[Tensor, "*b 1 n"] | None]:
    """The rows whose products `finish` turns into affinities, and for Euclidean distances their squared norms."""
    if distance in ("cosine", "angular"):
        return unit_rows(x), None
    # The power of two is common to all pairs of an image, so it need not be undone.
    largest = torch.maximum(x.amax((-2, -1), keepdim=True), x.amin((-2, -1), keepdim=True).neg_())
    exponent = torch.frexp(largest).exponent
    centred = torch.ldexp(x, -exponent)
    centred -= centred.mean(dim=-2, keepdim=True)
    return centred, centred.square().sum(-1).unsqueeze(-2)


def finish(
    products: Float[Tensor, "*b r n"],
    own: Float[Tensor, "*b r 1"],
    norms: Float[Tensor, "*b 1 n"] | None,
    distance: DistanceName,
) -> None:
    """Turn products of r prepared rows with all, times `FACTOR`, into affinities, in place."""
    if distance == "angular":
        # Both square roots lose half the digits near 0: that is this path's tolerance (about 1e-4 rad).
        near = (2 - 2 * products).clamp_min_(0).sqrt_()
        torch.atan2(near, products.mul_(2).add_(2).clamp_min_(0).sqrt_(), out=products)
    elif norms is not None:
        products.add_(own + norms).clamp_min_(0)
        if distance == "euclidean":
            products.sqrt_()


def _row_blocks(matrix: Float[Tensor, "*b n m"]) -> tuple[Tensor, ...]:
    # Temporaries of a few rows stay in the cache, and memory stays that of the matrix.
    return matrix.split(_BLOCK_ROWS if matrix.device.type == "cpu" else matrix.shape[-2], dim=-2)


def gram(
    x: Float[Tensor, "*b n d"], *, out: Float[Tensor, "*b n n"] | None = None, scale: float = 1.0
) -> Float[Tensor, "*b n n"]:
    r"""`scale` times $XX^\top$; on a CPU from some size on only the lower half is computed and then mirrored.

    Args:
        x: (n, d) float32 or float64, or (b, n, d) for one product per image.
        out: where to write; rows must be contiguous.
        scale: a factor, for free.

    Examples:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), scale=-1.0)
        tensor([[-5., -2.],
                [-2., -1.]])
    """
    n, d = x.shape[-2:]
    result = x.new_empty((*x.shape[:-1], n)) if out is None else out
    if x.ndim == 3:
        return torch.baddbmm(result, x, x.mT, beta=0, alpha=scale, out=result)
    if not _in_bands(x):
        return torch.addmm(result, x, x.mT, beta=0, alpha=scale, out=result)
    for left in range(0, d, _COLUMNS):
        _add_lower(result, x[:, left : left + _COLUMNS], scale, first=left == 0)
    _mirror(result)
    return result


def _in_bands(x: Float[Tensor, "n d"]) -> bool:
    return x.device.type == "cpu" and min(x.shape) >= _HALF_FROM


def _band(n: int) -> int:
    return -(-n // (16 * _BANDS)) * 16


def _add_lower(out: Float[Tensor, "n n"], part: Float[Tensor, "n c"], scale: float, *, first: bool) -> None:
    """The lower half, and a little of the upper one, of the product of some columns; added unless it is the first."""
    n, band = len(out), _band(len(out))
    for top in range(0, n, band):
        block = out[top : top + band, : top + band]
        block.addmm_(part[top : top + band], part[: top + band].mT, beta=0.0 if first else 1.0, alpha=scale)


def _mirror(out: Float[Tensor, "n n"]) -> None:
    n, band = len(out), _band(len(out))
    for top in range(band, n, band):
        out[:top, top : top + band] = out[top : top + band, :top].mT


def _unit_gram(x: Float[Tensor, "n d"], out: Float[Tensor, "n n"], scale: float) -> None:
    """`gram` of rows of length 1, some columns at a time, so that no second image is written."""
    buffer = torch.empty((len(x), min(x.shape[1], _COLUMNS)), dtype=out.dtype)
    norms = _norms(x, buffer)
    if not norms.min() > _SAFE[0] or not norms.max() < _SAFE[1]:
        gram(unit_rows(x.to(out.dtype)), out=out, scale=scale)
        return
    for left in range(0, x.shape[1], _COLUMNS):
        given = x[:, left : left + _COLUMNS]
        unit = torch.div(given, norms, out=buffer[:, : given.shape[1]])
        _add_lower(out, unit, scale, first=left == 0)
    _mirror(out)


def _norms(x: Float[Tensor, "n d"], buffer: Float[Tensor, "n c"]) -> Float[Tensor, "n 1"]:
    if x.dtype == buffer.dtype:
        return torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # Converting part by part and then taking norms is three times as fast as norms of half precision tensors.
    squares = buffer.new_zeros((len(x), 1))
    for part in x.split(buffer.shape[1], dim=1):
        given = buffer[:, : part.shape[1]].copy_(part)
        squares += torch.linalg.vector_norm(given, dim=1, keepdim=True).square_()
    return squares.sqrt_()
