r"""MustDrop's first part: merge windows of alike patches behind the first layer of the vision tower.

With the windows of w x w patches of the raster (w = 3) and the states that leave layer 0, the similarity of a window is
the mean cosine over its pairs of different patches. Windows with a similarity of at least 0.8 become their mean. The
tower goes on with the CLS token, one token per merged window and the patches of the other windows; sizes play no part
in its attention.

Paper: MustDrop, arXiv 2411.10803. Checked against liuting20/MustDrop, commit
909afa538bff22e10c02db2da101aa1870e21912, by the function `mustdrop_merge`.

Deviations: float32. The function has the program's order: merged windows by falling similarity, then untouched
patches. The strategy has raster order: a merged window stands at the place of its first patch. Attention inside the
tower does not depend on the order; the language model's positions do. In a batch the program merges as many windows in
every image as in the one with the fewest; here each image stands alone.
"""

from dataclasses import field
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import check_real
from tokenprune.baselines.scoring import TIED, as_given, unit64, working
from tokenprune.core.fields import strategy
from tokenprune.core.merging import Merge, Merging, TowerState
from tokenprune.core.places import InTower
from tokenprune.kernels.rank import ranking

__all__ = ["MergedWindows", "MustDropMerge", "check_window", "mustdrop_merge", "window_similarity"]


class MergedWindows(NamedTuple):
    """What window merging leaves of one image.

    Attributes:
        out_with_cls: float (1 + m + u, c): CLS, merged windows by falling similarity, untouched tokens in raster order.
        out_size: float (1 + m + u,), patches that each row stands for.
        merged_window_order: int64 (m,), windows in row-major order of the window raster.
        unmerged_index: int64 (u,), patches, ascending.
        window_similarity: float (windows,).
    """

    out_with_cls: Float[Tensor, "r c"]
    out_size: Float[Tensor, " r"]
    merged_window_order: Int[Tensor, " m"]
    unmerged_index: Int[Tensor, " u"]
    window_similarity: Float[Tensor, " w"]


def _window_members(rows: int, columns: int, window: int) -> Int[Tensor, "w s"]:
    """Patches of each whole window, windows and patches in row-major order."""
    down, across = rows // window, columns // window
    raster = torch.arange(rows * columns).reshape(rows, columns)[: down * window, : across * window]
    return raster.reshape(down, window, across, window).transpose(1, 2).reshape(-1, window * window)


def window_similarity(windows: Float[Tensor, "w s c"]) -> Float[Tensor, " w"]:
    """Mean cosine over the pairs of different patches of each window.

    Examples:
        >>> window_similarity(torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        tensor([1., 0.])
    """
    return as_given(_similarity(windows), windows)


def _similarity(windows: Float[Tensor, "w s c"]) -> Float[Tensor, " w"]:
    size = windows.shape[1]
    if not windows.numel():
        return windows.new_zeros(windows.shape[0])
    rows = unit64(windows)
    cosines = rows @ rows.transpose(1, 2)
    cosines = cosines - torch.diag_embed(cosines.diagonal(dim1=1, dim2=2))
    return cosines.sum((1, 2)) / max(1, size * (size - 1))


def mustdrop_merge(x_with_cls: Float[Tensor, "p c"], *, threshold: float = 0.8, window: int = 3) -> MergedWindows:
    """Average the windows whose patches are alike.

    Args:
        x_with_cls: (1 + g * g, c), output of the tower's first layer, CLS first.
        threshold: windows with at least this mean cosine are merged.
        window: side of a window in patches; must divide g.

    Raises:
        ValueError: when the patches are no square raster that the windows divide.

    Examples:
        >>> x = torch.tensor([[9.0, 9.0]] + [[1.0, 0.0]] * 2 + [[1.0, 0.0], [0.0, 1.0]] * 7)
        >>> mustdrop_merge(x, window=2).out_size
        tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    n = x_with_cls.shape[0] - 1
    side = isqrt(max(n, 0))
    if window < 1 or side * side != n or side % window:
        raise ValueError(f"mustdrop_merge: {n} patches are no square raster that windows of side {window} divide")
    patches = working(x_with_cls)[1:]
    members = _window_members(side, side, window).to(patches.device)
    windows = patches[members]
    similarity = _similarity(windows)
    merge = similarity >= threshold - TIED
    order = ranking(similarity, TIED)[: int(merge.sum())]
    untouched = members[~merge].flatten().sort().values
    out = torch.cat([working(x_with_cls)[:1], (windows[order] / window**2).sum(1), patches[untouched]])
    size = torch.ones(out.shape[0], dtype=out.dtype, device=out.device)
    size[1 : 1 + order.shape[0]] = window * window
    return MergedWindows(out.to(x_with_cls.dtype), size, order, untouched, as_given(similarity, x_with_cls))


def check_window(owner: str, window: object) -> None:
    """Raise unless `window` is an int of at least 2.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is smaller.
    """
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"{owner}: window must be an int such as 3, got {window!r} of type {type(window).__name__}")
    if window < 2:
        raise ValueError(f"{owner}: window must be at least 2 patches, got {window}")


@strategy("mustdrop_merge", paper="MustDrop, arXiv 2411.10803 (merging in the vision tower)")
class MustDropMerge(Merging):
    """Average windows of alike patches after the first layer of the vision tower (the first part of MustDrop).

    How many tokens are left differs from image to image. Definition, paper's code and deviations:
    `tokenprune.baselines.mustdrop_windows`. Without a model, windows that the raster's border cuts stay as they are.

    Args:
        window: side of a window in patches; must divide the raster of patches.
        threshold: windows with at least this mean cosine are merged, -1 to 1.

    Raises:
        TypeError: when an argument is no number.
        ValueError: when it is out of range.

    Examples:
        >>> from tokenprune import Tokens
        >>> tokens = Tokens(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]] * 2), grid=(2, 4))
        >>> selection = MustDropMerge(window=2, threshold=0.4).select(tokens)
        >>> selection.indices, selection.sizes
        (tensor([0, 2, 3, 6, 7]), tensor([4., 1., 1., 1., 1.]))
    """

    window: int = field(default=3, kw_only=True)
    threshold: float = 0.8
    example = "mustdrop_merge()"

    def __post_init__(self) -> None:
        check_window("MustDropMerge", self.window)
        object.__setattr__(self, "threshold", check_real("MustDropMerge", "threshold", self.threshold, -1, 1))

    @property
    def place(self) -> InTower:
        """After whole layers."""
        return InTower("layer")

    def check_raster(self, patches: int, grid: tuple[int, int] | None) -> None:
        """Raise unless the windows divide the raster; see `Merging.check_raster`."""
        rows, columns = grid or _square(patches) or (0, 0)
        if rows * columns != patches or rows % self.window or columns % self.window:
            raise ValueError(
                f"MustDropMerge: window={self.window} must divide the raster of patches, which is "
                f"{f'{rows} x {columns}' if rows else f'unknown for {patches} patches'}; choose another window"
            )

    def merge(
        self,
        layer: int,
        layers: int,
        state: TowerState,
        keys: Float[Tensor, "p e"] | None,
        *,
        prefix: int,
        patches: int,
    ) -> Merge | None:
        """Merge the windows of alike patches, after layer 0 alone; see `Merging.merge`."""
        del layers, keys
        grid = state.grid if state.grid is not None and state.grid[0] * state.grid[1] == patches else _square(patches)
        if layer or grid is None:
            return None
        members = _window_members(*grid, self.window).to(state.x.device)
        alike = _similarity(state.x[prefix:][members]) >= self.threshold - TIED
        groups = prefix + members[alike]
        if not groups.shape[0]:
            return None
        rows = torch.arange(state.x.shape[0], device=state.x.device)
        first = rows.index_copy(0, groups.flatten(), groups[:, :1].expand_as(groups).flatten())
        stays = first == rows
        return Merge(row_of=(stays.cumsum(0) - 1)[first], place=rows[stays])


def _square(patches: int) -> tuple[int, int] | None:
    side = isqrt(patches)
    return (side, side) if side * side == patches else None
