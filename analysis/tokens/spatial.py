"""Where kept tokens stand in the image: heat map, bias towards rows, columns or the centre, recall of objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenprune.analysis.images import AnalysedImage
from tokenprune.analysis.intervals import summarise
from tokenprune.analysis.measures import Watch, long_table, means_table, new_figure, styled
from tokenprune.analysis.tokens.cross_scoring import check_strategies, default_selections
from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class SpatialMeasures:
    """Where one selection stands. NaN means not defined here.

    Attributes:
        kept_share: share of the tokens kept.
        row_shift: mean row of the kept tokens minus that of all tokens, in heights of the raster: 0 without bias,
            negative towards the top.
        column_shift: the same for columns, in widths, negative towards the left.
        centre_ratio: mean distance of the kept tokens from the raster's centre over that of all tokens: 1 without bias,
            below 1 towards the centre.
        object_tokens: share of the tokens on annotated objects that are kept.
        object_lift: `object_tokens` over `kept_share`: 1 by chance.
        objects_hit: share of the objects of which at least one token is kept.
        padding_kept: share of the kept tokens that see nothing but padding (letterboxed pictures).
        padding_share: share of all tokens that do: what that would be by chance.
    """

    kept_share: float
    row_shift: float
    column_shift: float
    centre_ratio: float
    object_tokens: float
    object_lift: float
    objects_hit: float
    padding_kept: float
    padding_share: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SpatialReport:
    """Where a strategy keeps tokens over a data set.

    Attributes:
        strategy: the strategy.
        ids: the images.
        heat: float (rows, columns), share of the images that keep the token at that place.
        means: by name of a measure, its mean over images with a 95% interval.
    """

    strategy: PruningStrategy
    ids: tuple[str, ...]
    heat: npt.NDArray[np.float64]
    means: Mapping[str, Interval]

    @property
    def row_profile(self) -> npt.NDArray[np.float64]:
        """float (rows,), share of the kept tokens in each row times the number of rows: 1 everywhere when uniform."""
        return self.heat.sum(1) / self.heat.sum() * self.heat.shape[0]

    @property
    def column_profile(self) -> npt.NDArray[np.float64]:
        """The same for columns."""
        return self.heat.sum(0) / self.heat.sum() * self.heat.shape[1]

    @property
    def row_bias(self) -> float:
        """Total variation distance of the rows' shares from uniform: the share of kept tokens to move to even it out.

        Chance alone makes it larger than 0: compare with `random` on the same images. A fixed lattice such as
        `uniform_grid` leaves whole rows out and scores high, although `row_shift` is about 0.
        """
        return float(np.abs(self.row_profile - 1.0).mean() / 2.0)

    @property
    def column_bias(self) -> float:
        """The same for columns."""
        return float(np.abs(self.column_profile - 1.0).mean() / 2.0)

    def plot(self, ax: "Axes") -> "Axes":
        """The heat map, relative to a uniform one; white is as often as uniform, blue less often, red more often."""
        relative = self.heat / self.heat.mean()
        image = ax.imshow(relative, cmap="RdBu_r", vmin=0.0, vmax=2.0)
        ax.figure.colorbar(image, ax=ax, label="kept, relative to uniform", shrink=0.8, extend="max")
        ax.set_title(repr(self.strategy), loc="left", fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"row bias {self.row_bias:.3f}, column bias {self.column_bias:.3f}")
        ax.grid(visible=False)
        return ax


def measure_spatial(image: AnalysedImage, selection: Selection) -> SpatialMeasures:
    """Where one selection stands in its image.

    Args:
        image: its tokens need a `grid`.
        selection: what was kept of it. For methods that make new tokens, the places that those take.

    Raises:
        ValueError: when there is no raster, or the selection belongs to another image.
    """
    rows, columns = raster(image)
    tokens = image.tokens
    if selection.total != tokens.n:
        raise ValueError(
            f"measure_spatial: the selection was made from {selection.total} tokens but image {image.id!r} has "
            f"{tokens.n}; give the image that went into the strategy"
        )
    place = tokens.positions.cpu().numpy()
    y, x = (place // columns + 0.5) / rows, (place % columns + 0.5) / columns
    radius = np.hypot((y - 0.5) * rows, (x - 0.5) * columns)
    kept = np.zeros(tokens.n, dtype=bool)
    kept[selection.indices.cpu().numpy()] = True
    share, on = float(kept.mean()), image.on_object.cpu().numpy()
    recall = float(kept[on].mean()) if on.any() else _NAN
    padded = np.zeros(tokens.n, dtype=bool)
    padded[list(image.padding or ())] = True
    spread = float(radius.mean())
    return SpatialMeasures(
        kept_share=share,
        row_shift=float(y[kept].mean() - y.mean()),
        column_shift=float(x[kept].mean() - x.mean()),
        centre_ratio=float(radius[kept].mean()) / spread if spread > 0.0 else _NAN,
        object_tokens=recall,
        object_lift=recall / share,
        objects_hit=float(np.mean([kept[list(one)].any() for one in image.objects])) if image.objects else _NAN,
        padding_kept=float(padded[kept].mean()) if image.padding is not None else _NAN,
        padding_share=float(padded.mean()) if image.padding is not None else _NAN,
    )


def analyse_spatial(images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy]) -> list[SpatialReport]:
    """Run strategies over a data set and see where they keep tokens.

    Args:
        images: from `bundled_images` or `stream_images`; all with the same raster. Used once.
        strategies: at least one; they must act before the language model.

    Raises:
        ValueError: when there is no image or no strategy, or rasters differ.

    Examples:
        >>> import torch
        >>> from tokenprune import Tokens
        >>> from tokenprune.baselines import UniformGrid
        >>> image = AnalysedImage(id="a", tokens=Tokens(torch.eye(16), grid=(4, 4)), objects=((0, 1),))
        >>> (report,) = analyse_spatial([image], [UniformGrid(4)])
        >>> float(report.heat.sum()), report.means["kept_share"].value
        (4.0, 0.25)
    """
    check_strategies(strategies, owner="analyse_spatial")
    ids: list[str] = []
    measures: list[list[SpatialMeasures]] = [[] for _ in strategies]
    counts: npt.NDArray[np.float64] = np.zeros((len(strategies), 0))
    grid: tuple[int, int] | None = None
    for image in images:
        found = raster(image)
        if grid is None:
            grid, counts = found, np.zeros((len(strategies), found[0] * found[1]))
        if found != grid:
            raise ValueError(
                f"analyse_spatial: image {image.id!r} has a raster of {found[0]} x {found[1]} but the images before it "
                f"{grid[0]} x {grid[1]}; analyse images of one raster at a time"
            )
        ids.append(image.id)
        place = image.tokens.positions.cpu().numpy()
        for number, strategy in enumerate(strategies):
            selection = strategy.select(image.tokens)
            measures[number].append(measure_spatial(image, selection))
            counts[number, place[selection.indices.cpu().numpy()]] += 1
    if grid is None:
        raise ValueError("analyse_spatial: there are no images; give at least one")
    return [
        SpatialReport(
            strategy=strategy,
            ids=tuple(ids),
            heat=counts[number].reshape(grid) / len(ids),
            means=summarise(measures[number], ids),
        )
        for number, strategy in enumerate(strategies)
    ]


def raster(image: AnalysedImage) -> tuple[int, int]:
    """Rows and columns of an image's raster of tokens.

    Raises:
        ValueError: when it has none.
    """
    if image.tokens.grid is None:
        raise ValueError(
            f"image {image.id!r} has no Tokens.grid, so its tokens have no places; leave such images out of spatial "
            "analyses"
        )
    return image.tokens.grid


@styled
def spatial(
    images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy] = (), *, watch: Watch = iter
) -> Report:
    """Show where kept tokens are: heat map, row and column bias, recall of objects.

    Args:
        images: what is looked at.
        strategies: with their budgets; a few of each kind when there are none.
        watch: wraps the images, for a progress bar.
    """
    used = tuple(strategies) or default_selections()
    reports, names = analyse_spatial(watch(images), used), [repr(strategy) for strategy in used]
    columns = {
        "kept_share": ("kept", True),
        "row_shift": ("row shift", False),
        "column_shift": ("column shift", False),
        "centre_ratio": ("distance to\ncentre, ratio", False),
        "object_tokens": ("object tokens\nkept", True),
        "object_lift": ("over chance", False),
        "objects_hit": ("objects with\na token kept", True),
    }
    if reports[0].means["padding_share"].units:
        columns |= {"padding_kept": ("of the kept:\nin padding", True), "padding_share": ("of all:\nin padding", True)}
    across = min(3, len(reports))
    down = -(-len(reports) // across)
    figure = new_figure(4.4 * across, 3.7 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, report in zip(axes, reports, strict=False):
        report.plot(ax)
    for ax in axes[len(reports) :]:
        ax.set_axis_off()
    heat = [
        (repr(report.strategy), row, column, float(report.heat[row, column]))
        for report in reports
        for row in range(report.heat.shape[0])
        for column in range(report.heat.shape[1])
    ]
    means = [report.means for report in reports]
    bias = {
        "row\nbias": [f"{report.row_bias:.3f}" for report in reports],
        "column\nbias": [f"{report.column_bias:.3f}" for report in reports],
    }
    return Report(
        title="Where do methods keep tokens?",
        kind="analyze spatial",
        shown=[means_table("Where tokens are kept", names, means, columns, more=bias)],
        tables={
            "spatial": long_table(names, means),
            "heat": frame(("strategy", "row", "column", "share_of_images"), heat),
        },
        figures={"spatial": figure},
        notes={"spatial.png": "How often each place is kept, relative to keeping everywhere alike (white)."},
        configuration={"images": len(reports[0].ids), "strategies": names},
    )
