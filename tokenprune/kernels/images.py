"""Greedy selection for the images of a batch: which go side by side, on which route, and back in their order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.kernels import host, loops
from tokenprune.kernels.choose import MATRIX_BYTES, TOGETHER_BYTES, Route, choose
from tokenprune.kernels.decide import Decider, TooManyError
from tokenprune.kernels.direct import matrix_of, on_host_matrix
from tokenprune.kernels.lazy import LazyRows
from tokenprune.kernels.similarity import DistanceName, affinity, gram, rounding, row_sums, unit_rows, working_dtype
from tokenprune.kernels.ties import TIED, lowest_best, precise, precise_dtype

Start: TypeAlias = Literal["sum", "max", "min"] | int
"""The first pick: the row whose sum, largest entry or smallest entry off the diagonal is largest, or a row number."""

Objective: TypeAlias = Literal["sum", "min"]

_SMALL = 1 << 17  # entries of an image whose operations cost less than calling them: such images are scaled together


def pick_each(
    images: Sequence[Float[Tensor, "_ d"]],
    keeps: Sequence[int],
    *,
    objective: Objective = "sum",
    distance: DistanceName = "cosine",
    starts: Sequence[Start],
    route: Route = "auto",
) -> list[Int[Tensor, " _"]]:
    """Greedy picks of every image; what an image gets does not depend on the others.

    Images of one size are handled side by side on a CPU; on other devices all are, padded to one size, in parts that
    fit into `MATRIX_BYTES`. Nothing waits for the device.

    Args:
        images: (n, d) features each, or (n, n) distances with distance="precomputed"; finite, any n.
        keeps: picks of each image, 1 to n.
        objective: "sum": largest sum of distances to those picked; "min": largest smallest distance.
        distance: how far apart two tokens are.
        starts: first pick of each image.
        route: see `choose`; "auto" decides by sizes and device.

    Returns:
        Per image int64 (keep,), in pick order, on its device.

    Examples:
        >>> pick_each([torch.eye(3), torch.eye(2)], [2, 1], starts=["sum", 1])
        [tensor([0, 1]), tensor([1])]
    """
    images = [image.detach() for image in images]
    orders: list[Tensor | None] = [None] * len(images)
    for way, members in _parts(images, keeps, distance, starts, route):
        part, counts, start = [images[i] for i in members], [keeps[i] for i in members], starts[members[0]]
        if way == "lazy":
            found = [_without_matrix(part[0], counts[0], objective, distance, start)]
        elif way == "host":
            found = _on_host(part, counts, objective, distance, start)
        else:
            found = _on_device(part, counts, objective, distance, start, way)
        for i, order in zip(members, found, strict=True):
            orders[i] = order
    return [order for order in orders if order is not None]


def _parts(
    images: Sequence[Tensor], keeps: Sequence[int], distance: DistanceName, starts: Sequence[Start], route: Route
) -> Iterator[tuple[Route, list[int]]]:
    """The images that are handled together, and how."""
    groups: dict[tuple[Route, object], list[int]] = {}
    for i, (image, keep, start) in enumerate(zip(images, keeps, starts, strict=True)):
        dtype = working_dtype(image)
        itemsize = _itemsize(image, distance)
        way = choose(image.shape[0], keep, image.device, itemsize=itemsize) if route == "auto" else route
        if way == "lazy" and distance == "precomputed":
            way = "host" if image.device.type == "cpu" else "torch"
        size = None if way in ("torch", "triton") else image.shape[0]
        width = None if distance == "precomputed" else image.shape[1]
        groups.setdefault((way, (size, width, dtype, image.device, start)), []).append(i)
    for (way, _), members in groups.items():
        members.sort(key=lambda i: images[i].shape[0])
        bound = TOGETHER_BYTES if way == "host" else 0 if way == "lazy" else MATRIX_BYTES
        part: list[int] = []
        for i in members:
            n, itemsize = images[i].shape[0], _itemsize(images[i], distance)
            if part and (len(part) + 1) * n * n * itemsize > bound:
                yield way, part
                part = []
            part.append(i)
        yield way, part


def _itemsize(image: Tensor, distance: DistanceName) -> int:
    return 4 if image.device.type == "cpu" and in_float32(image, distance) else precise_dtype(image.device).itemsize


def _on_host(
    images: Sequence[Tensor], keeps: Sequence[int], objective: Objective, distance: DistanceName, start: Start
) -> list[Tensor]:
    if not in_float32(images[0], distance):
        return [_in_float64(*each, objective, distance, start) for each in zip(images, keeps, strict=True)]
    n = images[0].shape[0]
    matrix = torch.empty((len(images), n, n))
    if len(images) > 1 and images[0].numel() <= _SMALL:
        for points, out in zip(unit_rows(torch.stack(list(images)).float()), matrix, strict=True):
            gram(points, out=out, scale=-1.0)
        matrix.diagonal(dim1=1, dim2=2).fill_(-1.0)
    else:
        for i, image in enumerate(images):
            affinity(image[None], distance, out=matrix[i : i + 1])
    error, budget = rounding(images[0].shape[1], torch.float32), n * n // 64 + 64
    rows = matrix.numpy()
    deciders = [
        Decider(image, objective, lambda i, j, of=of: of[i[:, None], j], error, budget)  # type: ignore[misc]
        for image, of in zip(images, rows, strict=True)
    ]
    rules = [_float32_rule(objective, error, decider) for decider in deciders]
    try:
        first = _first_on_host(matrix, start, error, deciders)
        if len(images) > 1:
            return [torch.from_numpy(order) for order in host.walk_together(rows, keeps, first, rules)]
        order = host.walk(rows[0].__getitem__, n, keeps[0], int(first[0]), rules[0])
        return [torch.from_numpy(order)]
    except TooManyError:
        if len(images) > 1:
            pairs = zip(images, keeps, strict=True)
            return [_on_host([each], [keep], objective, distance, start)[0] for each, keep in pairs]
        return [_in_float64(images[0], keeps[0], objective, distance, start)]


def in_float32(image: Tensor, distance: DistanceName) -> bool:
    """Whether a float32 matrix is enough to tell most tokens of an image on a CPU apart."""
    # Below "highest" torch may multiply float32 matrices in bfloat16.
    full = torch.get_float32_matmul_precision() == "highest"
    return distance == "cosine" and working_dtype(image) == torch.float32 and full


def _float32_rule(objective: Objective, error: float, decider: Decider) -> host.Rule:
    """Two scores are each wrong by the rounding of their entries and of adding them."""
    unit = torch.finfo(torch.float32).eps / 2
    return host.Rule(objective, np.dtype(np.float32), 2 * error + 4 * unit, unit, decider)


def _first_on_host(matrix: Tensor, start: Start, error: float, deciders: Sequence[Decider]) -> NDArray[np.int64]:
    """`first_picks` for float32 cosines: what they cannot tell apart is decided."""
    if isinstance(start, int):
        return np.full(len(matrix), start, dtype=np.int64)
    if start == "min":
        matrix.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no loop reads it for what it decides
    if start == "sum":
        score, width = row_sums(matrix)
        width += error * matrix.shape[1]
    else:
        score, width = _EXTREME[start](matrix, -1), error
    scores = score.numpy()
    close = scores >= scores.max(axis=1, keepdims=True) - 2 * width
    first: NDArray[np.int64] = close.argmax(axis=1)
    if np.count_nonzero(close) > len(close):
        for image in np.flatnonzero(close.sum(axis=1) > 1).tolist():
            first[image] = deciders[image].first(np.flatnonzero(close[image]), start)
    return first


_EXTREME = {"max": torch.amax, "min": torch.amin}


def _in_float64(image: Tensor, keep: int, objective: Objective, distance: DistanceName, start: Start) -> Tensor:
    """One image whose matrix is in float64, where only ties are close."""
    matrix, scale = on_host_matrix(image, distance)
    first = int(first_picks(matrix[None], start, scale=scale, exact=distance == "precomputed")[0])
    rows = matrix.numpy()
    return torch.from_numpy(host.walk(rows.__getitem__, len(rows), keep, first, _rule64(objective, distance, scale)))


def _rule64(objective: Objective, distance: DistanceName, scale: float) -> host.Rule:
    exact = objective == "min" and distance == "precomputed"  # numbers that are given are compared as they are
    return host.Rule(objective, np.dtype(np.float64), 0.0 if exact else TIED * scale)


def _without_matrix(image: Tensor, keep: int, objective: Objective, distance: DistanceName, start: Start) -> Tensor:
    n, device = image.shape[0], image.device
    if device.type == "cpu" and in_float32(image, distance):
        return _without_matrix_float32(image, keep, objective, start)
    lazy = LazyRows(precise(image), distance)
    if isinstance(start, int):
        first = torch.full((1,), start, device=device)
    else:
        score = lazy.reduce(start)[None]
        first = lowest_best(score, TIED * (n if start == "sum" else 1) * lazy.scale)
    if device.type == "cpu":
        rule = _rule64(objective, distance, float(lazy.scale))
        return torch.from_numpy(host.walk(lambda i: lazy.row(i).numpy(), n, keep, int(first), rule))
    loop = loops.max_sum if objective == "sum" else loops.max_min
    valid = torch.ones((1, n), dtype=torch.bool, device=device)
    return loop(lazy.rows, keep, first, valid, precise_dtype(device), lazy.scale)[0]


def _without_matrix_float32(image: Tensor, keep: int, objective: Objective, start: Start) -> Tensor:
    lazy = LazyRows(image, "cosine")
    n, d = image.shape
    error = rounding(d, torch.float32, columns=d)
    decider = Decider(image, objective, lazy.block, error)
    if isinstance(start, int):
        first = start
    else:
        score = lazy.reduce(start)
        width = 2 * (lazy.sum_rounding() if start == "sum" else error)
        close = (score >= score.max() - width).nonzero()[:, 0].numpy()
        first = decider.first(close, start)
    rule = _float32_rule(objective, error, decider)
    return torch.from_numpy(host.walk(lambda i: lazy.row(i).numpy(), n, keep, first, rule))


def _on_device(
    images: Sequence[Tensor],
    keeps: Sequence[int],
    objective: Objective,
    distance: DistanceName,
    start: Start,
    way: Route,
) -> list[Tensor]:
    square = distance == "precomputed"
    padded, valid = pad(images, square=square)
    matrix, scale = matrix_of(padded, distance, valid)
    most = max(keeps)
    first = first_picks(matrix, start, valid, scale=scale, exact=square)
    if square and objective == "min":
        scale = scale * 0.0  # numbers that are given are compared as they are
    if way == "triton":
        from tokenprune.kernels import fused

        orders = (fused.max_sum if objective == "sum" else fused.max_min)(matrix, most, first, valid, scale)
    else:
        loop = loops.max_sum if objective == "sum" else loops.max_min
        orders = loop(loops.rows_of(matrix), most, first, valid, matrix.dtype, scale)
    return [order[:keep] for order, keep in zip(orders, keeps, strict=True)]


def pad(
    images: Sequence[Float[Tensor, "_ _"]], *, square: bool = False
) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    """Images in working precision with zero rows up to one size (`square`: columns too), and which rows are real.

    Examples:
        >>> padded, valid = pad([torch.ones(2, 1), torch.ones(1, 1)])
        >>> padded.squeeze(-1).tolist(), valid.tolist()
        ([[1.0, 1.0], [1.0, 0.0]], [[True, True], [True, False]])
    """
    sizes = [image.shape[0] for image in images]
    n, device, dtype = max(sizes), images[0].device, working_dtype(images[0])
    if min(sizes) == n:
        together = torch.stack(list(images)).to(dtype)
        return together, torch.ones(together.shape[:2], dtype=torch.bool, device=device)
    padded = torch.zeros((len(images), n, n if square else images[0].shape[1]), dtype=dtype, device=device)
    valid = torch.zeros((len(images), n), dtype=torch.bool, device=device)
    for i, image in enumerate(images):
        padded[i, : image.shape[0], : image.shape[1]] = image
        valid[i, : image.shape[0]] = True
    return padded, valid


def first_picks(
    matrix: Float[Tensor, "b n n"],
    start: Start,
    valid: Bool[Tensor, "b n"] | None = None,
    *,
    scale: Float[Tensor, "b 1"] | float = 1.0,
    exact: bool = False,
) -> Int[Tensor, " b"]:
    """The first pick of each image from float64 matrices, ties to the lowest index.

    Args:
        matrix: affinities.
        start: the rule.
        valid: False for padding; None when there is none.
        scale: the size of an entry; see `ties.TIED`.
        exact: entries are given, and so compared as they are; sums of them are not.

    Examples:
        >>> first_picks(torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "sum")
        tensor([1])
    """
    if isinstance(start, int):
        return torch.full((matrix.shape[0],), start, dtype=torch.int64, device=matrix.device)
    if start == "min":
        own = torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device)
        hidden = own if valid is None else own | ~valid[:, None, :]
        score = matrix.masked_fill(hidden, torch.inf).amin(-1)
    else:
        seen = matrix
        if valid is not None:
            seen = matrix.masked_fill(~valid[:, None, :], 0.0 if start == "sum" else -torch.inf)
        score = seen.sum(-1) if start == "sum" else seen.amax(-1)
    terms: Tensor | float = 0.0 if exact else 1.0
    if start == "sum":
        terms = float(matrix.shape[1]) if valid is None else valid.sum(1, keepdim=True)
    return lowest_best(score if valid is None else score.masked_fill_(~valid, -torch.inf), scale * (terms * TIED))


def determinant_each(
    kernels: Iterable[Float[Tensor, "_ _"]], keeps: Sequence[int], *, route: Route = "auto"
) -> list[Int[Tensor, " _"]]:
    """Greedy picks that maximise the determinant of each kernel's picked block; see `loops.max_determinant`.

    Args:
        kernels: (n, n) positive semidefinite matrices of any sizes; on a CPU one is held at a time.
        keeps: picks of each, 1 to n.
        route: "host", "torch", "triton", or "auto".

    Returns:
        Per kernel int64 (keep,), in pick order, on its device.

    Examples:
        >>> determinant_each([torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.1, 0.0], [0.0, 0.0, 0.5]])], [2])
        [tensor([1, 2])]
    """
    orders: list[Tensor] = []
    waiting: list[Tensor] = []
    for given, keep in zip(kernels, keeps, strict=True):
        kernel = precise(given.detach())
        if on_host(kernel, route):
            rows = kernel.numpy()
            orders.append(determinant_on_host(lambda i, _, rows=rows: rows[i], keep, kernel.diagonal()))  # type: ignore[misc]
            continue
        waiting.append(kernel)
        widest = max(each.shape[0] for each in waiting)
        if (len(waiting) + 1) * widest**2 * kernel.element_size() > MATRIX_BYTES:
            orders += _determinants_on_device(waiting, keeps[len(orders) :], route)
            waiting = []
    return orders + (_determinants_on_device(waiting, keeps[len(orders) :], route) if waiting else [])


def determinant_on_host(row: host.ScoredRow, keep: int, quality: Tensor) -> Tensor:
    """One image of `determinant_each`, from its kernel's diagonal and the rows that are asked for."""
    last = loops.last_resorts(quality[None])[0]
    return torch.from_numpy(host.max_determinant(row, keep, quality.numpy(), last.numpy()))


def on_host(kernel: Tensor, route: Route) -> bool:
    """Whether a kernel goes to the loop in NumPy."""
    return route == "host" or (route == "auto" and kernel.device.type == "cpu")


def _determinants_on_device(kernels: Sequence[Tensor], keeps: Sequence[int], route: Route) -> list[Tensor]:
    matrix, valid = pad(kernels, square=True)
    counts = keeps[: len(kernels)]
    quality = matrix.diagonal(dim1=1, dim2=2)
    way = choose(matrix.shape[1], max(counts), matrix.device, itemsize=matrix.element_size())
    if "triton" in (route, way if route == "auto" else route):
        from tokenprune.kernels import fused

        orders = fused.max_determinant(matrix, max(counts), quality, valid)
    else:
        orders = loops.max_determinant(loops.rows_of(matrix), max(counts), quality, valid)
    return [order[:keep] for order, keep in zip(orders, counts, strict=True)]
