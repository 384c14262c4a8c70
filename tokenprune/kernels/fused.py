"""The greedy loops as Triton kernels: one program per image, the running scores stay on the chip.

Each step reads one row of the image's matrix, updates the scores and finds the next pick; nothing is launched and
nothing is waited for between steps. Scores within a slack of the best are ties, which go to the lowest index, as in
`tokenprune.kernels.loops`, whose rules these are.

Imported only where a tensor is on a GPU (or by the tests, under Triton's interpreter): importing Triton takes time.
Without Triton `supports` is False, and the loops in torch are used.
"""

from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.kernels.loops import DEPENDENT, TIED_RESIDUAL, last_resorts
from tokenprune.kernels.ties import TIED

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Operand: TypeAlias = Any  # a tensor's address, a number or a block: Triton types them when it compiles

_WIDEST = 65536  # bytes of the scores of one program: what the registers of 16 warps hold
_COLUMNS_PER_WARP = 256


def supports(n: int, itemsize: int = 4) -> bool:
    """Whether there is a kernel for n tokens per image with entries of that many bytes."""
    return triton is not None and n * itemsize <= _WIDEST and itemsize in (4, 8)


def max_sum(
    matrix: Float[Tensor, "b n n"],
    keep: int,
    first: Int[Tensor, " b"],
    valid: Bool[Tensor, "b n"],
    scale: Float[Tensor, "b 1"],
) -> Int[Tensor, "b k"]:
    """`loops.max_sum` on matrices."""
    return _run_walk(matrix, keep, first, valid, scale, smallest=False)


def max_min(
    matrix: Float[Tensor, "b n n"],
    keep: int,
    first: Int[Tensor, " b"],
    valid: Bool[Tensor, "b n"],
    scale: Float[Tensor, "b 1"],
) -> Int[Tensor, "b k"]:
    """`loops.max_min` on matrices."""
    return _run_walk(matrix, keep, first, valid, scale, smallest=True)


def max_determinant(
    matrix: Float[Tensor, "b n n"], keep: int, quality: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b k"]:
    """`loops.max_determinant` on kernels; the Cholesky factors (b, k, n) go through memory."""
    batch, n, _ = matrix.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=matrix.device)
    factors = matrix.new_empty((batch, keep, n))
    quality = quality.contiguous()
    slack = quality.masked_fill(~valid, 0.0).amax(1).mul_(TIED_RESIDUAL)
    width = triton.next_power_of_2(n)
    _determinant[(batch,)](
        matrix.contiguous(),
        quality,
        last_resorts(quality),
        slack,
        slack.new_full((1,), TIED_RESIDUAL),
        valid.contiguous(),
        factors,
        picks,
        n,
        keep,
        WIDTH=width,
        DEPENDENT=DEPENDENT,
        num_warps=_warps(width),
    )
    return picks


def _run_walk(matrix: Tensor, keep: int, first: Tensor, valid: Tensor, scale: Tensor, *, smallest: bool) -> Tensor:
    batch, n, _ = matrix.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=matrix.device)
    width = triton.next_power_of_2(n)
    _walk[(batch,)](
        matrix.contiguous(),
        first.contiguous(),
        valid.contiguous(),
        (scale.reshape(-1) * TIED).to(matrix.dtype),
        picks,
        n,
        keep,
        WIDTH=width,
        SMALLEST=smallest,
        num_warps=_warps(width),
    )
    return picks


def _warps(width: int) -> int:
    return min(16, max(1, width // _COLUMNS_PER_WARP))


if triton is not None:

    @triton.jit
    def _best(scores: Operand, slack: Operand, columns: Operand) -> Operand:
        # Two reductions instead of one over pairs: the lowest index among the largest, on every backend.
        return tl.min(tl.where(scores >= tl.max(scores, 0) - slack, columns, 2147483647), 0)

    @triton.jit
    def _walk(
        matrix: Operand,
        first: Operand,
        valid: Operand,
        slacks: Operand,
        picks: Operand,
        n: Operand,
        keep: Operand,
        WIDTH: tl.constexpr,  # noqa: N803
        SMALLEST: tl.constexpr,  # noqa: N803
    ) -> None:
        image = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, WIDTH)
        inside = columns < n
        free = tl.load(valid + image * n + columns, mask=inside, other=0) != 0
        rows = matrix + image * n * n
        start = float("inf") if SMALLEST else 0.0
        state = tl.where(free, start, float("-inf")).to(matrix.dtype.element_ty)
        slack = tl.load(slacks + image)  # of one token picked
        pick = tl.load(first + image).to(tl.int32)
        tl.store(picks + image * keep, pick.to(tl.int64))
        for step in range(1, keep):
            row = tl.load(rows + pick.to(tl.int64) * n + columns, mask=inside, other=0.0)
            state = tl.minimum(state, row) if SMALLEST else state + row
            state = tl.where(columns == pick, float("-inf"), state)
            pick = _best(state, slack if SMALLEST else slack * step, columns)
            tl.store(picks + image * keep + step, pick.to(tl.int64))

    @triton.jit
    def _determinant(
        matrix: Operand,
        quality: Operand,
        last_resort: Operand,
        slacks: Operand,
        last_slack: Operand,
        valid: Operand,
        factors: Operand,
        picks: Operand,
        n: Operand,
        keep: Operand,
        WIDTH: tl.constexpr,  # noqa: N803
        DEPENDENT: tl.constexpr,  # noqa: N803
    ) -> None:
        image = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, WIDTH)
        inside = columns < n
        free = tl.load(valid + image * n + columns, mask=inside, other=0) != 0
        own = tl.load(quality + image * n + columns, mask=inside, other=0.0)
        ranked = tl.load(last_resort + image * n + columns, mask=inside, other=0.0)
        rows = matrix + image * n * n
        known = factors + image * keep * n
        residual = own
        slack, resort_slack = tl.load(slacks + image), tl.load(last_slack)
        for step in range(keep):
            dependent = residual <= DEPENDENT * own
            independent = free & (residual > DEPENDENT * own)
            chances = tl.where(independent, residual, float("-inf"))
            resorts = tl.where(free, ranked, float("-inf"))
            pick = tl.where(
                tl.max(tl.where(independent, 1, 0), 0) != 0,
                _best(chances, slack, columns),
                _best(resorts, resort_slack, columns),
            )
            tl.store(picks + image * keep + step, pick.to(tl.int64))
            here = columns == pick
            free = free & (columns != pick)
            stuck = tl.max(tl.where(here & dependent, 1, 0), 0)
            left = tl.max(tl.where(here, residual, float("-inf")), 0)
            left = tl.where(stuck != 0, 1.0, left)  # a rounded residual may be negative; the row is dropped below
            tl.debug_barrier()  # every thread reads the picked column of rows that others wrote
            taken = own - own
            for past in range(step):
                weight = tl.load(known + past * n + pick)
                taken += weight * tl.load(known + past * n + columns, mask=inside, other=0.0)
            row = tl.load(rows + pick.to(tl.int64) * n + columns, mask=inside, other=0.0) - taken
            row = row / tl.sqrt(left)
            row = tl.where(stuck != 0, 0.0, row)
            residual = residual - row * row
            tl.store(known + step * n + columns, row, mask=inside)
