"""The greedy loops as Triton kernels: one program per image, the running scores stay on the chip.

Each step reads one row of the image's matrix, updates the scores and finds the next pick; nothing is launched and
nothing is waited for between steps. Ties go to the lowest index, as in `tokenprune.kernels.loops`, whose rules and
order of operations these are.

Imported only where a tensor is on a GPU (or by the tests, under Triton's interpreter): importing Triton takes time.
Without Triton `supports` is False, and the loops in torch are used.
"""

from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.kernels.loops import DEPENDENT, last_resorts

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Operand: TypeAlias = Any  # a tensor's address, a number or a block: Triton types them when it compiles

_WIDEST = 16384  # scores of one program: what the registers of 16 warps hold
_COLUMNS_PER_WARP = 256


def supports(n: int, itemsize: int = 4) -> bool:
    """Whether there is a kernel for n tokens per image with entries of that many bytes."""
    return triton is not None and n <= _WIDEST and itemsize == 4


def max_sum(
    matrix: Float[Tensor, "b n n"], keep: int, first: Int[Tensor, " b"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b k"]:
    """`loops.max_sum` on float32 matrices."""
    return _run_walk(matrix, keep, first, valid, smallest=False)


def max_min(
    matrix: Float[Tensor, "b n n"], keep: int, first: Int[Tensor, " b"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b k"]:
    """`loops.max_min` on float32 matrices."""
    return _run_walk(matrix, keep, first, valid, smallest=True)


def max_determinant(
    matrix: Float[Tensor, "b n n"], keep: int, quality: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b k"]:
    """`loops.max_determinant` on float32 kernels; the Cholesky factors (b, k, n) go through memory."""
    batch, n, _ = matrix.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=matrix.device)
    factors = matrix.new_empty((batch, keep, n))
    quality = quality.contiguous()
    width = triton.next_power_of_2(n)
    _determinant[(batch,)](
        matrix.contiguous(),
        quality,
        last_resorts(quality),
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


def _run_walk(matrix: Tensor, keep: int, first: Tensor, valid: Tensor, *, smallest: bool) -> Tensor:
    batch, n, _ = matrix.shape
    picks = torch.empty((batch, keep), dtype=torch.int64, device=matrix.device)
    width = triton.next_power_of_2(n)
    _walk[(batch,)](
        matrix.contiguous(),
        first.contiguous(),
        valid.contiguous(),
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
    def _best(scores: Operand, columns: Operand) -> Operand:
        # Two reductions instead of one over pairs: the lowest index among the largest, on every backend.
        return tl.min(tl.where(scores == tl.max(scores, 0), columns, 2147483647), 0)

    @triton.jit
    def _walk(
        matrix: Operand,
        first: Operand,
        valid: Operand,
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
        state = tl.where(free, start, float("-inf"))
        pick = tl.load(first + image).to(tl.int32)
        tl.store(picks + image * keep, pick.to(tl.int64))
        for step in range(1, keep):
            row = tl.load(rows + pick.to(tl.int64) * n + columns, mask=inside, other=0.0)
            state = tl.minimum(state, row) if SMALLEST else state + row
            state = tl.where(columns == pick, float("-inf"), state)
            pick = _best(state, columns)
            tl.store(picks + image * keep + step, pick.to(tl.int64))

    @triton.jit
    def _determinant(
        matrix: Operand,
        quality: Operand,
        last_resort: Operand,
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
        for step in range(keep):
            dependent = residual <= DEPENDENT * own
            scores = tl.where(free, tl.where(dependent, ranked, residual), float("-inf"))
            pick = _best(scores, columns)
            tl.store(picks + image * keep + step, pick.to(tl.int64))
            here = columns == pick
            free = free & (columns != pick)
            stuck = tl.max(tl.where(here & dependent, 1, 0), 0)
            left = tl.max(tl.where(here, residual, float("-inf")), 0)
            left = tl.where(stuck != 0, 1.0, left)  # a rounded residual may be negative; the row is dropped below
            tl.debug_barrier()  # every thread reads the picked column of rows that others wrote
            taken = tl.zeros((WIDTH,), tl.float32)
            for past in range(step):
                weight = tl.load(known + past * n + pick)
                taken += weight * tl.load(known + past * n + columns, mask=inside, other=0.0)
            row = tl.load(rows + pick.to(tl.int64) * n + columns, mask=inside, other=0.0) - taken
            row = tl.div_rn(row, tl.sqrt_rn(tl.zeros((WIDTH,), tl.float32) + left))
            row = tl.where(stuck != 0, 0.0, row)
            residual = residual - row * row
            tl.store(known + step * n + columns, row, mask=inside)
