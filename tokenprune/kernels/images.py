"""Greedy selection for the images of a batch: which go side by side, on which route, and back in their order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.kernels import host, loops
from tokenprune.kernels.choose import MATRIX_BYTES, TOGETHER_BYTES, Route, choose
from tokenprune.kernels.lazy import LazyRows
from tokenprune.kernels.similarity import DistanceName, affinity, gram, unit_rows, working_dtype

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
        way = choose(image.shape[0], keep, image.device, itemsize=dtype.itemsize) if route == "auto" else route
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
            n, itemsize = images[i].shape[0], working_dtype(images[i]).itemsize
            if part and (len(part) + 1) * n * n * itemsize > bound:
                yield way, part
                part = []
            part.append(i)
        yield way, part


def _on_host(
    images: Sequence[Tensor], keeps: Sequence[int], objective: Objective, distance: DistanceName, start: Start
) -> list[Tensor]:
    if distance == "precomputed" or len(images) == 1:
        return [_alone_on_host(*each, objective, distance, start) for each in zip(images, keeps, strict=True)]
    n, most = images[0].shape[0], max(keeps)
    matrix = torch.empty((len(images), n, n), dtype=working_dtype(images[0]))
    if distance == "cosine" and images[0].numel() <= _SMALL:
        for points, out in zip(unit_rows(torch.stack(list(images)).to(matrix.dtype)), matrix, strict=True):
            gram(points, out=out, scale=-1.0)
        matrix.diagonal(dim1=1, dim2=2).fill_(-1.0)
    else:
        for i, image in enumerate(images):
            affinity(image[None], distance, out=matrix[i : i + 1])
    first = first_picks(matrix, start, scratch=True).numpy()
    together = host.max_sum_together if objective == "sum" else host.max_min_together
    orders = torch.from_numpy(together(matrix.numpy(), most, first))
    return [order[:keep] for order, keep in zip(orders, keeps, strict=True)]


def _alone_on_host(image: Tensor, keep: int, objective: Objective, distance: DistanceName, start: Start) -> Tensor:
    matrix = affinity(image[None], distance)
    rows = matrix[0].numpy()
    walk = host.max_sum if objective == "sum" else host.max_min
    first = int(first_picks(matrix, start, scratch=distance != "precomputed")[0])
    return torch.from_numpy(walk(rows.__getitem__, len(rows), keep, first, rows.dtype))


def _without_matrix(image: Tensor, keep: int, objective: Objective, distance: DistanceName, start: Start) -> Tensor:
    lazy = LazyRows(image, distance)
    n, dtype, device = image.shape[0], working_dtype(image), image.device
    first = torch.full((), start, device=device) if isinstance(start, int) else lazy.reduce(start).argmax()
    if device.type == "cpu":
        walk = host.max_sum if objective == "sum" else host.max_min
        kind = np.dtype(str(dtype).removeprefix("torch."))
        return torch.from_numpy(walk(lambda i: lazy.row(i).numpy(), n, keep, int(first), kind))
    loop = loops.max_sum if objective == "sum" else loops.max_min
    valid = torch.ones((1, n), dtype=torch.bool, device=device)
    return loop(lazy.rows, keep, first[None], valid, dtype)[0]


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
    matrix, most = affinity(padded, distance), max(keeps)
    first = first_picks(matrix, start, valid)
    if way == "triton":
        from tokenprune.kernels import fused

        orders = (fused.max_sum if objective == "sum" else fused.max_min)(matrix, most, first, valid)
    else:
        loop = loops.max_sum if objective == "sum" else loops.max_min
        orders = loop(loops.rows_of(matrix), most, first, valid, matrix.dtype)
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
    matrix: Float[Tensor, "b n n"], start: Start, valid: Bool[Tensor, "b n"] | None = None, *, scratch: bool = False
) -> Int[Tensor, " b"]:
    """The first pick of each image, ties to the lowest index.

    Args:
        matrix: affinities.
        start: the rule.
        valid: False for padding; None when there is none.
        scratch: the diagonal may be overwritten, which saves a copy; no loop reads it for what it decides.

    Examples:
        >>> first_picks(torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "sum")
        tensor([1])
    """
    if isinstance(start, int):
        return torch.full((matrix.shape[0],), start, dtype=torch.int64, device=matrix.device)
    if start == "min" and scratch and valid is None:
        matrix.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        return matrix.amin(-1).argmax(1)
    if start == "min":
        own = torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device)
        hidden = own if valid is None else own | ~valid[:, None, :]
        score = matrix.masked_fill(hidden, torch.inf).amin(-1)
    else:
        seen = matrix
        if valid is not None:
            seen = matrix.masked_fill(~valid[:, None, :], 0.0 if start == "sum" else -torch.inf)
        score = seen.sum(-1) if start == "sum" else seen.amax(-1)
    return (score if valid is None else score.masked_fill_(~valid, -torch.inf)).argmax(1)


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
        kernel = given.detach()
        if on_host(kernel, route):
            quality = kernel.diagonal()
            last = loops.last_resorts(quality[None])[0]
            rows = kernel.numpy()
            picks = host.max_determinant(rows.__getitem__, keep, quality.numpy(), last.numpy())
            orders.append(torch.from_numpy(picks))
            continue
        waiting.append(kernel)
        widest = max(each.shape[0] for each in waiting)
        if (len(waiting) + 1) * widest**2 * kernel.element_size() > MATRIX_BYTES:
            orders += _determinants_on_device(waiting, keeps[len(orders) :], route)
            waiting = []
    return orders + (_determinants_on_device(waiting, keeps[len(orders) :], route) if waiting else [])


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
