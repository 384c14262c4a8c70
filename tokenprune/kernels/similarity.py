"""Similarity matrices at the cost of little more than half a matrix product, written where they are needed."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

DistanceName: TypeAlias = Literal["cosine", "euclidean", "sqeuclidean", "angular", "precomputed"]

# Half of a symmetric product is worth computing alone from these sizes on: it takes two thirds of the time for 461 rows
# of 4096 numbers, three quarters for 256 rows of 256.
_HALF_FROM = 256
_BANDS = 6
# Columns per partial product: rounding of an entry is that of so many terms, and not of all (`rounding`).
_COLUMNS = 256
# Numbers or squares that are summed in the tokens' precision, where more than `_COLUMNS` would be; the rest in float64.
_SUMMED = 64
_BLOCK_ROWS = 128
_SMALL = 1 << 16  # entries of which norms in float64 cost less than calling more operations
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
    return result.div_(row_norms(result).clamp_min_(1.0))


def row_norms(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n 1"]:
    """Lengths of rows, of long ones with little rounding."""
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if x.numel() <= _SMALL:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).to(x.dtype)
    return squared_norms(x).sqrt_().to(x.dtype)


def squared_norms(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n 1"]:
    """Squared lengths of rows in float64, from lengths of `_SUMMED` numbers each."""
    d = x.shape[-1]
    whole = d - d % _SUMMED
    parts = x[..., :whole].unflatten(-1, (whole // _SUMMED, _SUMMED)) if whole else x[..., None, :0]
    total = torch.linalg.vector_norm(parts, dim=-1).double().square_().sum(-1, keepdim=True)
    if whole < d:
        total += torch.linalg.vector_norm(x[..., whole:], dim=-1, keepdim=True).double().square_()
    return total


def rounding(d: int, dtype: torch.dtype, *, columns: int = _COLUMNS) -> float:
    """How far a cosine of the matrix may be from its true value, whatever the order in which terms are added.

    A sum of m products of numbers of two unit rows is wrong by at most m + 1 times the rounding of one operation; so is
    a squared norm, relative to itself, which counts half for each of the two rows.

    Args:
        d: width of the rows.
        dtype: float32 or float64.
        columns: terms that are summed before they are added to the rest.

    Examples:
        >>> rounding(4096, torch.float32) < 4e-5
        True
    """
    unit = torch.finfo(dtype).eps / 2
    norm = _SUMMED + d // _SUMMED * (dtype == torch.float64)
    return 1.05 * unit * (min(d, columns) + -(-d // columns) + norm + 12)


def row_sums(matrix: Float[Tensor, "b n n"]) -> tuple[Float[Tensor, "b n"], float]:
    """Sums of the rows of cosines, and how far the additions may have rounded them."""
    n, unit = matrix.shape[-1], torch.finfo(matrix.dtype).eps / 2
    if n <= 4 * _SUMMED:
        return matrix.sum(-1), n * n * unit
    whole = n - n % _SUMMED
    sums = matrix[..., :whole].unflatten(-1, (whole // _SUMMED, _SUMMED)).sum(-1).double().sum(-1)
    if whole < n:
        sums += matrix[..., whole:].sum(-1)
    return sums, (_SUMMED + 1) * n * unit


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
        near = _snapped(2 - 2 * products, 1.0).sqrt_()
        torch.atan2(near, _snapped(products.mul_(2).add_(2), 1.0).sqrt_(), out=products)
    elif norms is not None:
        total = own + norms
        _snapped(products.add_(total), total)
        if distance == "euclidean":
            products.sqrt_()


def _snapped(squares: Tensor, size: Tensor | float) -> Tensor:
    """Squared distances in place, 0 where they are no more than rounding of their size."""
    noise = 512 * torch.finfo(squares.dtype).eps if squares.dtype == torch.float64 else 0.0
    return squares.masked_fill_(squares <= size * noise, 0.0)


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
    if d <= _COLUMNS or x.device.type != "cpu":
        return torch.addmm(result, x, x.mT, beta=0, alpha=scale, out=result)
    if not _in_bands(x):
        for left in range(0, d, _COLUMNS):
            part = x[:, left : left + _COLUMNS]
            result.addmm_(part, part.mT, beta=0.0 if left == 0 else 1.0, alpha=scale)
        return result
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
        return row_norms(x)
    # Converting part by part and then taking norms is three times as fast as norms of half precision tensors.
    squares = torch.zeros((len(x), 1), dtype=torch.float64)
    for part in x.split(buffer.shape[1], dim=1):
        squares += squared_norms(buffer[:, : part.shape[1]].copy_(part))
    return squares.sqrt_().to(buffer.dtype)
