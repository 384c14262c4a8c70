"""The ablation runner: every variant on the same samples, cell by cell into a run folder, resumable."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenprune.analysis.answers.variants import Variant
from tokenprune.core.budget import Keep
from tokenprune.evaluate.batches import resampling_units
from tokenprune.evaluate.cell_files import read_cells
from tokenprune.evaluate.cells import DENSE, Cell
from tokenprune.evaluate.methods import show_budget
from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION
from tokenprune.evaluate.run_folder import RunFolder, slug
from tokenprune.evaluate.samples import Sample, check_samples, samples_digest
from tokenprune.evaluate.significance import corrected, paired_p_value
from tokenprune.evaluate.statistics import Interval, agreement, mean_interval, paired_difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenprune.evaluate.loading import LoadedModel
    from tokenprune.evaluate.run_loop import Progress

_RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One variant.

    Attributes:
        variant: what ran.
        seeds: number of seeds pooled; 1 for variants without.
        accuracy: with a 95% interval over images.
        kept: visual tokens kept per image, mean.
        agreement: share of answers equal to the dense model's.
        difference: accuracy minus that of the factor's reference, paired; None for the reference itself.
        p_value: of that difference, images exchanged; None for the reference.
        p_corrected: the same after Holm's correction within the factor.
        over_random: accuracy minus that of a random subset, paired; None for Random itself.
    """

    variant: Variant
    seeds: int
    accuracy: Interval
    kept: float
    agreement: float
    difference: Interval | None
    p_value: float | None
    p_corrected: float | None
    over_random: Interval | None


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationReport:
    """An ablation, finished or stopped.

    Attributes:
        folder: the run folder.
        keep: the budget.
        samples: number of samples.
        dense: accuracy of the unpruned model.
        rows: one per finished variant.
        finished: cells that are finished now.
        reused: cells that an earlier run had finished.
        cells: cells in all.
    """

    folder: Path
    keep: Keep
    samples: int
    dense: Interval | None
    rows: tuple[AblationRow, ...]
    finished: int
    reused: int
    cells: int

    @property
    def complete(self) -> bool:
        """False when the run was stopped."""
        return self.finished == self.cells

    def plot(self, ax: "Axes") -> "Axes":
        """Accuracy of every variant with its interval, factor by factor; the reference of each factor is hollow."""
        place, ticks, labels = 0.0, [], []
        for factor in dict.fromkeys(row.variant.factor for row in self.rows):
            ax.text(-0.01, place, factor, transform=ax.get_yaxis_transform(), ha="right", va="center", weight="bold")
            place += 1
            for row in [row for row in self.rows if row.variant.factor == factor]:
                value, low, high = row.accuracy.value, row.accuracy.low, row.accuracy.high
                ends = np.nan_to_num([[max(0.0, value - low)], [max(0.0, high - value)]])
                found = row.p_corrected is not None and row.p_corrected < 0.05
                colour = "#D55E00" if found else "#0072B2"
                face = "white" if row.variant.reference else colour
                ax.errorbar(value, place, xerr=ends, fmt="o", color=colour, markerfacecolor=face, capsize=2)
                ticks.append(place)
                labels.append(row.variant.label)
                place += 1
            place += 0.4
        if self.dense is not None:
            ax.axvline(self.dense.value, color="black", linewidth=0.9, label="dense")
        for colour, face, text in (
            ("#0072B2", "white", "reference of its factor"),
            ("#0072B2", "#0072B2", "no difference found to the reference"),
            ("#D55E00", "#D55E00", "differs from the reference (Holm, 5%)"),
        ):
            ax.plot([], [], "o", color=colour, markerfacecolor=face, label=text)
        ax.set_yticks(ticks, labels)
        ax.set_ylim(place, -0.6)
        ax.set_xlabel(f"accuracy at a budget of {show_budget(self.keep)}, with 95% interval over images")
        ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.07), ncols=2, fontsize=8)
        return ax

    @property
    def findings(self) -> tuple[str, ...]:
        """Per factor, which settings differ from its reference."""
        found = []
        for factor in dict.fromkeys(row.variant.factor for row in self.rows):
            members = [row for row in self.rows if row.variant.factor == factor]
            reference = next((row for row in members if row.variant.reference), None)
            if reference is None:
                continue
            parts = []
            for row in members:
                if row.difference is None or row.p_corrected is None:
                    continue
                d = row.difference
                mark = "" if row.p_corrected < 0.05 else ", not told apart"
                parts.append(
                    f"{row.variant.label} {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]{mark}"
                )
            start = f"{factor}: against {reference.variant.label!r} ({100 * reference.accuracy.value:.1f}%)"
            found.append(f"{start}, in points: {'; '.join(parts)}.")
        return tuple(found)


def run_ablation(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    variants: Sequence[Variant],
    keep: Keep,
    *,
    data: str,
    out: Path,
    seeds: tuple[int, ...] = (0, 1, 2),
    batch_size: int = 16,
    max_new_tokens: int = 16,
    fresh: bool = False,
    progress: "Progress | None" = None,
) -> AblationReport:
    """Run every variant on the same samples; a stopped run of the same configuration goes on where it was.

    A cell is written when it is finished, as a whole; variants of several factors that are the same thing run once. On
    Ctrl-C the report is made from the cells that are there.

    Args:
        loaded: the model and its processor.
        samples: the data set.
        variants: from `ablation_variants`, or one's own; factors without a reference get no differences.
        keep: the budget.
        data: what the data set is called in reports.
        out: folder that holds the run folders.
        seeds: for variants that draw at random.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        fresh: do finished cells again.
        progress: is told about the progress.

    Raises:
        ValueError: before any work, when a variant does not fit the model, a label occurs twice in a factor, or the run
            folder cannot be written, a cell in it is damaged, or another process is at work in it.
    """
    from tokenprune.evaluate.run_loop import Silent, run_missing
    from tokenprune.evaluate.runner import Runner

    check_samples(samples, source=data)
    _check_variants(variants)
    cells, members = _cells(variants, keep, seeds)
    runner = Runner(loaded, samples, batch_size, max_new_tokens=max_new_tokens)
    runner.check([cell.strategy for cell in cells if cell.strategy is not None])
    config = _configuration(loaded, samples, data, cells, variants, keep, batch_size, max_new_tokens)
    need = len(cells) * len(samples) * 2400 + 4 * 2**20
    with RunFolder.open(out, "analyze-ablation", config, fresh=fresh, need_bytes=need) as folder:
        reused = len(read_cells(folder, [cell.id for cell in cells], samples))  # damaged ones are found before work
        with suppress(KeyboardInterrupt):  # the finished cells are on disk and are reported
            run_missing(runner, folder, cells, progress or Silent())
        contents = read_cells(folder, [cell.id for cell in cells], samples)
    units = resampling_units(samples, runner.names)
    rows, dense = _summarise(variants, members, contents, samples, units)
    return AblationReport(
        folder=folder.path,
        keep=keep,
        samples=len(samples),
        dense=dense,
        rows=tuple(rows),
        finished=len(contents),
        reused=reused,
        cells=len(cells),
    )


def _check_variants(variants: Sequence[Variant]) -> None:
    if not variants:
        raise ValueError("run_ablation: variants is empty; give at least one, or ablation_variants(keep)")
    seen: set[tuple[str, str]] = set()
    for variant in variants:
        name = (variant.factor, variant.label)
        if name in seen:
            raise ValueError(f"run_ablation: {variant.label!r} occurs twice in the factor {variant.factor!r}")
        seen.add(name)


def _cells(variants: Sequence[Variant], keep: Keep, seeds: tuple[int, ...]) -> tuple[list[Cell], list[list[str]]]:
    """The cells, dense first, and for each variant the ids of its own."""
    cells = [Cell(id="000-dense", method=DENSE)]
    known: dict[tuple[str, str | None], str] = {}
    members: list[list[str]] = []
    for variant in variants:
        own = []
        for seed, strategy in variant.strategies(keep, seeds):
            # "compact" written out is what a strategy with compact positions does anyway.
            policy = variant.positions or strategy.place.positions
            key = (repr(strategy), policy)
            if key not in known:
                known[key] = f"{len(cells):03d}-{slug(variant.text)}" + ("" if seed is None else f"-s{seed}")
                cell = Cell(id=known[key], method=variant.label, keep=keep, seed=seed, strategy=strategy)
                cells.append(replace(cell, positions=policy))
            own.append(known[key])
        members.append(own)
    return cells, members


def _configuration(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    data: str,
    cells: Sequence[Cell],
    variants: Sequence[Variant],
    keep: Keep,
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    from tokenprune.evaluate.environment import package_versions, source_digest

    versions = package_versions()
    return {
        "analysis": "ablation",
        "model": {"name": loaded.name, "digest": loaded.digest},
        "data": {"name": data, "samples": len(samples), "digest": samples_digest(samples)},
        "metric": METRIC,
        "metric_version": METRIC_VERSION,
        "keep": keep,
        "cells": [[cell.id, repr(cell.strategy), cell.positions] for cell in cells],
        "variants": [[v.factor, v.label, v.text, v.reference] for v in variants],
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "code": {"source": source_digest(), **{k: versions[k] for k in ("tokenprune", "torch", "transformers")}},
    }


def _summarise(
    variants: Sequence[Variant],
    members: Sequence[Sequence[str]],
    contents: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Sample],
    units: Sequence[str],
) -> tuple[list[AblationRow], Interval | None]:
    from tokenprune.evaluate.summary import correctness

    right = {name: np.array(correctness(content, samples)) for name, content in contents.items()}
    dense = contents.get("000-dense")
    if dense is None:
        return [], None
    done = [(v, ids) for v, ids in zip(variants, members, strict=True) if all(name in contents for name in ids)]
    runs = {(v.factor, v.label): np.stack([right[name] for name in ids]) for v, ids in done}
    references = {v.factor: runs[v.factor, v.label] for v, _ in done if v.reference}
    chance = next((runs[v.factor, v.label] for v, _ in done if v.text == _RANDOM), None)
    answers = [record["answer"] for record in dense["samples"]]
    rows = []
    for variant, ids in done:
        own = runs[variant.factor, variant.label]
        same = [agreement([r["answer"] for r in contents[name]["samples"]], answers) for name in ids]
        kept = [p["tokens_out"] for name in ids for r in contents[name]["samples"] for p in r["images"]]
        reference = None if variant.reference else references.get(variant.factor)
        rows.append(
            AblationRow(
                variant=variant,
                seeds=len(ids),
                accuracy=mean_interval(own, units),
                kept=float(np.mean(kept)),
                agreement=float(np.mean(same)),
                difference=_against(own, reference, units),
                p_value=None if reference is None else paired_p_value(own, reference, units),
                p_corrected=None,
                over_random=None if variant.text == _RANDOM else _against(own, chance, units),
            )
        )
    return _with_correction(rows), mean_interval(right["000-dense"], units)


def _against(
    own: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_] | None, units: Sequence[str]
) -> Interval | None:
    return None if reference is None else paired_difference(own, reference, units)


def _with_correction(rows: Sequence[AblationRow]) -> list[AblationRow]:
    result = list(rows)
    for factor in {row.variant.factor for row in rows}:
        places = [i for i, row in enumerate(rows) if row.variant.factor == factor and row.p_value is not None]
        for place, value in zip(places, corrected([rows[i].p_value or 0.0 for i in places]), strict=True):
            result[place] = replace(rows[place], p_corrected=value)
    return result
