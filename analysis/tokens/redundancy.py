"""How redundant visual and text tokens are, measured alike: cosines, near-duplicates, rank of the cloud."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.analysis.images import AnalysedImage
from tokenprune.analysis.intervals import over_images, show, summarise
from tokenprune.analysis.measures import Watch, new_figure, numbers, styled, texts
from tokenprune.analysis.spectrum import effective_rank, participation_ratio, unit_rows
from tokenprune.analysis.tokens.controls import NO_CONTROLS, Controls
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 80
"""Bins of the histogram of cosines over [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class RedundancyMeasures:
    """One cloud of tokens.

    Attributes:
        tokens: how many tokens were measured.
        mean_cosine: mean cosine over pairs.
        cosine_q05: 5% quantile of the pairs' cosines.
        cosine_q95: 95% quantile.
        neighbours: share of tokens that have another one with a cosine above tau.
        rank_share: effective rank over number of tokens.
        participation_share: participation ratio over number of tokens.
        norm_spread: standard deviation of the norms over their mean, before any scaling.
    """

    tokens: float
    mean_cosine: float
    cosine_q05: float
    cosine_q95: float
    neighbours: float
    rank_share: float
    participation_share: float
    norm_spread: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RedundancyReport:
    """Visual against text tokens over a data set.

    Attributes:
        controls: what was taken out.
        tau: cosine above which two tokens count as near-duplicates.
        ids: the images.
        visual, text: by name of a measure, its mean over images with a 95% interval.
        difference: visual minus text, paired by image. The interval speaks of new images with such prompts: words that
            all prompts share do not vary between images.
        histogram: float (2, bins), share of pairs per bin of cosine, mean over images; visual, then text.
    """

    controls: Controls
    tau: float
    ids: tuple[str, ...]
    visual: Mapping[str, Interval]
    text: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    histogram: npt.NDArray[np.float64]

    def plot(self, ax: "Axes") -> "Axes":
        """The two distributions of pairwise cosine."""
        edges = np.linspace(-1.0, 1.0, BINS + 1)
        looks = (("visual tokens", "#0072B2", self.visual), ("text tokens", "#D55E00", self.text))
        for (name, colour, means), heights in zip(looks, self.histogram, strict=True):
            mean = means["mean_cosine"].value
            ax.stairs(heights, edges, fill=True, color=colour, alpha=0.45, label=f"{name}, mean {mean:.2f}")
            ax.axvline(mean, ymax=0.72, color=colour, linewidth=1.2)
        ax.axvline(self.tau, color="#555555", linestyle="--", linewidth=0.8, label=f"tau = {self.tau:g}")
        ax.set_xlim(-1.0, 1.0)
        ax.set_ylim(0.0, 1.4 * float(self.histogram.max()))  # room for the legend
        ax.set_xlabel("cosine of two tokens of one image")
        ax.set_ylabel("share of pairs")
        ax.set_title(self.controls.label, loc="left")
        ax.legend(loc="upper left")
        return ax


def measure_redundancy(x: Float[Tensor, "n d"], *, tau: float = 0.9) -> RedundancyMeasures:
    """Measure one cloud of tokens as it is.

    Args:
        x: (n, d), n >= 2.
        tau: cosine above which two tokens count as near-duplicates, in (-1, 1).

    Raises:
        ValueError: when there are fewer than two tokens, or tau is out of range.

    Examples:
        >>> found = measure_redundancy(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]))
        >>> round(found.mean_cosine, 6), found.neighbours
        (0.333333, 1.0)
    """
    return _measure(x, x, tau)[0]


def analyse_redundancy(
    images: Iterable[AnalysedImage], settings: Sequence[Controls] = (Controls(),), *, tau: float = 0.9
) -> list[RedundancyReport]:
    """Compare the redundancy of visual tokens (projector output) and text tokens (input embeddings), image by image.

    One pass; only numbers are kept of each image, so any stream will do.

    Args:
        images: every image needs a text.
        settings: confounders to take out, a report for each entry. The default takes all out, `NO_CONTROLS` none.
        tau: see `measure_redundancy`.

    Raises:
        ValueError: when there is no image or no setting, or an image has no text or fewer than two (distinct) tokens on
            one side.

    Examples:
        >>> from tokenprune import Tokens
        >>> image = AnalysedImage(id="a", tokens=Tokens(torch.ones(4, 3), text=torch.eye(3)))
        >>> (report,) = analyse_redundancy([image], [Controls(unique=False, centre=False)])
        >>> report.difference["neighbours"].value
        1.0
    """
    if not settings:
        raise ValueError("analyse_redundancy: settings is empty; give at least one, for example Controls()")
    tallies = [RedundancyTally() for _ in settings]
    ids: list[str] = []
    for image in images:
        if image.tokens.text is None:
            raise ValueError(f"analyse_redundancy: image {image.id!r} has no Tokens.text; give the prompt's embeddings")
        ids.append(image.id)
        for controls, tally in zip(settings, tallies, strict=True):
            tally.add(controlled_redundancy((image.tokens.visual, image.tokens.text), image.id, controls, tau))
    return [tally.report(controls, tau, ids) for controls, tally in zip(settings, tallies, strict=True)]


_Measured = tuple[RedundancyMeasures, npt.NDArray[np.float64]]


class RedundancyTally:
    """What one setting has measured so far; of each image only numbers are kept."""

    def __init__(self) -> None:
        self.sides: tuple[list[RedundancyMeasures], list[RedundancyMeasures]] = ([], [])
        self.histogram = np.zeros((2, BINS))

    def add(self, results: list[_Measured]) -> None:
        """Take in one image: both sides, from `controlled_redundancy`."""
        for side, (measured, shares) in enumerate(results):
            self.sides[side].append(measured)
            self.histogram[side] += shares

    def report(self, controls: Controls, tau: float, ids: Sequence[str]) -> RedundancyReport:
        """Means and intervals over the images `ids`."""
        visual, text = (summarise(side, ids) for side in self.sides)
        pairs = list(zip(*self.sides, strict=True))
        return RedundancyReport(
            controls=controls,
            tau=tau,
            ids=tuple(ids),
            visual=visual,
            text=text,
            difference={
                name: over_images([getattr(a, name) - getattr(b, name) for a, b in pairs], ids) for name in visual
            },
            histogram=self.histogram / len(ids),
        )


def controlled_redundancy(clouds: tuple[Tensor, Tensor], name: str, controls: Controls, tau: float) -> list[_Measured]:
    """Both sides of one image, measured with the confounders taken out.

    Args:
        clouds: visual and text tokens, (n, d) and (m, d).
        name: of the image; the draw of a subsample depends on it.
        controls: what to take out.
        tau: see `measure_redundancy`.

    Raises:
        ValueError: when one side has fewer than two (distinct) tokens.
    """
    raw = [cloud.detach().double() for cloud in clouds]
    if controls.unique:
        raw = [torch.unique(cloud + 0.0, dim=0) for cloud in raw]  # + 0.0: a negative zero equals a positive one
    sizes = [cloud.shape[0] for cloud in raw]
    if min(sizes) < 2:
        raise ValueError(
            f"analyse_redundancy: image {name!r} has {sizes[0]} visual and {sizes[1]} text tokens to compare, but "
            "two of each are needed; give a longer prompt"
        )
    rng = np.random.default_rng([controls.seed, zlib.crc32(name.encode())])
    results: list[_Measured] = []
    for cloud in raw:
        size = min(sizes) if controls.equal_counts else cloud.shape[0]
        # A side that is not subsampled is the same in every draw.
        draws = controls.draws if size < cloud.shape[0] else 1
        parts = []
        for _ in range(draws):
            rows = np.sort(rng.choice(cloud.shape[0], size, replace=False))
            part = cloud[torch.from_numpy(rows).to(cloud.device)]
            used = unit_rows(part) if controls.unit else part
            parts.append(_measure(used - used.mean(0) if controls.centre else used, part, tau))
        results.append(_average(parts))
    return results


def _average(parts: list[_Measured]) -> _Measured:
    rows = [asdict(measured) for measured, _ in parts]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return replace(parts[0][0], **mean), np.mean([shares for _, shares in parts], axis=0)


def _measure(x: Tensor, original: Tensor, tau: float) -> _Measured:
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"measure_redundancy: x must be (n, d) with two rows or more, got {tuple(x.shape)}")
    if not -1.0 < tau < 1.0:
        raise ValueError(f"measure_redundancy: tau must lie between -1 and 1, got {tau}; 0.9 is a common choice")
    unit = unit_rows(x)
    n = unit.shape[0]
    cosine = (unit @ unit.T).cpu().numpy()
    pairs = cosine[np.triu_indices(n, 1)]
    np.fill_diagonal(cosine, -np.inf)
    norms = original.detach().double().norm(dim=-1)
    low, high = np.quantile(pairs, [0.05, 0.95])
    measured = RedundancyMeasures(
        tokens=float(n),
        mean_cosine=float(pairs.mean()),
        cosine_q05=float(low),
        cosine_q95=float(high),
        neighbours=float((cosine.max(1) > tau).mean()),
        rank_share=effective_rank(x) / n,
        participation_share=participation_ratio(x) / n,
        norm_spread=float(norms.std(correction=0) / norms.mean()) if float(norms.mean()) > 0.0 else 0.0,
    )
    counts = np.histogram(pairs.clip(-1.0, 1.0), bins=BINS, range=(-1.0, 1.0))[0]
    return measured, counts / pairs.size


@styled
def redundancy(images: Iterable[AnalysedImage], *, tau: float = 0.9, watch: Watch = iter) -> Report:
    """Compare the redundancy of visual and text tokens: cosines, near-duplicates, rank.

    Args:
        images: what is looked at.
        tau: cosine from which on two tokens are near-duplicates, between -1 and 1.
        watch: wraps the images, for a progress bar.
    """
    settings = (NO_CONTROLS, Controls(unit=False, centre=False), Controls())
    reports = analyse_redundancy(watch(images), settings, tau=tau)
    figure = new_figure(14, 4.2)
    for ax, report in zip(figure.subplots(1, 3), reports, strict=True):
        report.plot(ax)
    shown = []
    rows: list[Sequence[object]] = []
    for report in reports:
        sides = {"visual": report.visual, "text": report.text, "difference": report.difference}
        body = [[name, *(show(side[name]) for side in sides.values())] for name in report.visual]
        shown.append(texts(f"Redundancy, {report.controls.label} (tau {tau:g})", ("measure", *sides), body))
        for side, means in sides.items():
            rows.extend((report.controls.label, name, side, *numbers(mean)) for name, mean in means.items())
    last = reports[-1]
    found = [
        f"{name.replace('_', ' ')}: visual {show(last.visual[name])}, text {show(last.text[name])}, difference "
        f"{show(last.difference[name])}"
        for name in ("mean_cosine", "neighbours", "rank_share")
    ]
    return Report(
        title="Are visual tokens more redundant than text tokens?",
        kind="analyze redundancy",
        shown=shown,
        tables={"redundancy": frame(("controls", "measure", "side", "value", "low", "high", "images"), rows)},
        figures={"redundancy": figure},
        notes={"redundancy.png": "Pairwise cosine within an image, confounders taken out from left to right."},
        configuration={"images": len(last.ids), "strategies": [], "tau": tau},
        findings=[f"With all confounders taken out ({last.controls.label}), {len(last.ids)} images:", *found],
    )
