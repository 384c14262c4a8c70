"""From finished cells to the rows of the results table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenprune.core.budget import Keep
from tokenprune.evaluate.cells import DENSE, Cell
from tokenprune.evaluate.contract import text_source
from tokenprune.evaluate.cost.timing import Spread, spread
from tokenprune.evaluate.metrics import accuracy_by_kind, exact_match
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.significance import corrected, paired_p_value
from tokenprune.evaluate.statistics import Interval, agreement, flips, mean_interval, paired_difference

STAGES = ("vision", "selection", "prefill", "decode")
REFERENCE = "random"
"""Label of the method that the paired differences are taken against."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one budget, or one fixed method, pooled over its seeds.

    Attributes:
        method: its label; "dense" for the unpruned model.
        keep: the budget; None for dense and for fixed methods.
        seeds: number of seeds pooled; 1 for methods without.
        samples: number of samples, n.
        accuracy: mean exact match with an interval over images.
        seed_sd: standard deviation of the accuracy over seeds (n - 1); None for a single run.
        difference: accuracy minus Random's at `reference`, paired by sample; None for dense and for Random itself.
        p_value: two-sided, of that difference (see `paired_p_value`).
        p_corrected: the same after Holm's correction over all methods compared with Random at `reference`.
        agreement: share of answers equal to the dense model's.
        right_to_wrong: samples that dense gets right and this does not; a mean over seeds.
        wrong_to_right: the opposite.
        tokens_in: visual tokens per image before pruning, a mean.
        tokens_out: visual tokens per image that enter a layer of the language model, a mean over images and layers;
            methods that drop inside it keep fewer in the end.
        tokens_kept: visual tokens per image that are left behind the last layer that drops, a mean.
        tokens_range: smallest and largest number of visual tokens kept of an image, behind the last layer that drops.
        positions: position policy of the kept tokens; "-" for dense, which moves nothing.
        text_source: what of the prompt the choice depends on; see `tokenprune.evaluate.contract.text_source`.
        output_tokens: generated tokens per answer, a mean.
        times: stage to milliseconds per sample; a stage that does not occur is missing.
        kinds: accuracy by kind of question.
        reference: the budget at which Random is compared with; None where nothing is compared. Of a fixed method it is
            the one at which Random's tokens, mean over layers, are the same when rounded to one.
        no_difference: why a fixed method is compared with nothing; "" otherwise.
    """

    method: str
    keep: Keep | None
    seeds: int
    samples: int
    accuracy: Interval
    seed_sd: float | None
    difference: Interval | None
    p_value: float | None
    p_corrected: float | None
    agreement: float
    right_to_wrong: float
    wrong_to_right: float
    tokens_in: float
    tokens_out: float
    tokens_kept: float
    tokens_range: tuple[int, int]
    positions: str
    text_source: str
    output_tokens: float
    times: dict[str, Spread]
    kinds: dict[str, float]
    reference: Keep | None = None
    no_difference: str = ""

    @property
    def is_dense(self) -> bool:
        """True for the unpruned model."""
        return self.method == DENSE

    @property
    def is_fixed(self) -> bool:
        """True for a method that has no budget to set."""
        return self.keep is None and not self.is_dense


def correctness(content: Mapping[str, Any], samples: Sequence[Sample]) -> list[bool]:
    """Per sample of a finished cell: was the answer right?"""
    return [
        exact_match(record["answer"], sample.answers)
        for record, sample in zip(content["samples"], samples, strict=True)
    ]


def summarise(
    cells: Sequence[Cell],
    contents: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Sample],
    units: Sequence[str],
    vision: Sequence[Mapping[str, Any]],
) -> list[Row]:
    """One row per method and budget, in the order of the cells; fixed methods have one row.

    A fixed method is compared with Random only where Random had as many tokens (mean over decoder layers, rounded to
    one token): at any other number a difference says as much about the number as about the choice.

    Args:
        cells: the whole comparison; its first cell is the dense one.
        contents: finished cells by id. Cells that are missing are left out; without the dense cell there are no rows.
        samples: the data set.
        units: what the bootstrap resamples, per sample.
        vision: batches of the vision encoder, with `images`, `seconds` and `counted`.
    """
    if cells[0].id not in contents:
        return []
    dense = contents[cells[0].id]
    finished = [cell for cell in cells if cell.id in contents]
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in finished:
        groups.setdefault((cell.method, repr(cell.keep)), []).append(cell)
    right = {cell.id: correctness(contents[cell.id], samples) for cell in finished}
    images = float(np.mean([len(sample.images) for sample in samples]))
    encoder = spread([1000 * b["seconds"] / b["images"] * images for b in vision if b["counted"]])
    rows = []
    for (method, keep), members in groups.items():
        own = [contents[cell.id] for cell in members]
        reference, reason = groups.get((REFERENCE, keep)), ""
        if members[0].keep is None and members[0].strategy is not None:
            randoms = [group for (name, _), group in groups.items() if name == REFERENCE]
            wanted = _layer_average(own)
            reference = _same_tokens(randoms, [_layer_average([contents[c.id] for c in g]) for g in randoms], wanted)
            if reference is None:
                reason = f"no Random row with {_whole(wanted)} tokens; add --keep {_whole(wanted)}"
        rows.append(
            _row(
                members,
                own,
                np.array([right[cell.id] for cell in members]),
                None if reference is None or method == REFERENCE else np.array([right[cell.id] for cell in reference]),
                dense,
                right[cells[0].id],
                samples,
                units,
                encoder,
            )
        )
        if rows[-1].difference is not None and reference is not None:
            rows[-1] = replace(rows[-1], reference=reference[0].keep)
        elif reason:
            rows[-1] = replace(rows[-1], no_difference=reason)
    return _corrected(rows)


def _same_tokens(groups: Sequence[list[Cell]], averages: Sequence[float], wanted: float) -> list[Cell] | None:
    """The group whose tokens, rounded to one, are those wanted; of several the nearest, None when there is none."""
    fitting = [i for i, average in enumerate(averages) if _whole(average) == _whole(wanted)]
    return groups[min(fitting, key=lambda i: abs(averages[i] - wanted))] if fitting else None


def _whole(tokens: float) -> int:
    """The number of tokens that Random would be asked for; it keeps at least one."""
    return max(1, round(tokens))


def _layer_average(contents: Sequence[Mapping[str, Any]]) -> float:
    """Visual tokens per image that enter a layer, mean over images and layers."""
    pictures = [picture for content in contents for record in content["samples"] for picture in record["images"]]
    return float(np.mean([picture.get("layer_average", picture["tokens_out"]) for picture in pictures]))


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with p-values corrected over the methods that are compared with the same Random."""
    families: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row.p_value is not None:
            families.setdefault(repr(row.reference), []).append(place)
    result = list(rows)
    for places in families.values():
        for place, value in zip(places, corrected([rows[i].p_value or 0.0 for i in places]), strict=True):
            result[place] = replace(rows[place], p_corrected=value)
    return result


def _row(
    members: Sequence[Cell],
    contents: Sequence[Mapping[str, Any]],
    right: "np.ndarray[Any, np.dtype[np.bool_]]",
    reference: "np.ndarray[Any, np.dtype[np.bool_]] | None",
    dense: Mapping[str, Any],
    dense_right: Sequence[bool],
    samples: Sequence[Sample],
    units: Sequence[str],
    encoder: Spread | None,
) -> Row:
    dense_answers = [record["answer"] for record in dense["samples"]]
    same = [agreement([record["answer"] for record in content["samples"]], dense_answers) for content in contents]
    turned = [flips(list(run), dense_right) for run in right]
    pictures = [picture for content in contents for record in content["samples"] for picture in record["images"]]
    by_run = right.mean(axis=1)
    return Row(
        method=members[0].method,
        keep=members[0].keep,
        seeds=len(members),
        samples=len(samples),
        accuracy=mean_interval(right, units),
        seed_sd=float(by_run.std(ddof=1)) if len(members) > 1 else None,
        difference=None if reference is None else paired_difference(right, reference, units),
        p_value=None if reference is None else paired_p_value(right, reference, units),
        p_corrected=None,
        agreement=float(np.mean(same)),
        right_to_wrong=float(np.mean([lost for lost, _ in turned])),
        wrong_to_right=float(np.mean([won for _, won in turned])),
        tokens_in=float(np.mean([picture["tokens_in"] for picture in pictures])),
        tokens_out=_layer_average(contents),
        tokens_kept=float(np.mean([picture["tokens_out"] for picture in pictures])),
        tokens_range=(
            min(picture["tokens_out"] for picture in pictures),
            max(picture["tokens_out"] for picture in pictures),
        ),
        positions="-" if members[0].strategy is None else str(contents[0]["positions"]),
        text_source=text_source(members[0].strategy),
        output_tokens=float(
            np.mean([record["output_tokens"] for content in contents for record in content["samples"]])
        ),
        times=_times(contents, encoder),
        kinds=accuracy_by_kind(right.mean(axis=0).tolist(), [sample.kind for sample in samples]),
    )


def _times(contents: Sequence[Mapping[str, Any]], encoder: Spread | None) -> dict[str, Spread]:
    batches = [batch for content in contents for batch in content["batches"] if batch["counted"]]
    own = spread([1000 * batch["vision"] / batch["samples"] for batch in batches if "vision" in batch])
    encoder = own or encoder
    times = {} if encoder is None else {"vision": encoder}
    for stage in ("selection", "prefill", "decode"):
        # The dense model selects nothing: its batches hold no time for it.
        found = spread([1000 * batch[stage] / batch["samples"] for batch in batches if batch[stage] is not None])
        if found is not None:
            times[stage] = found
    return times
