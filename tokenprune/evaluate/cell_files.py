"""What a run folder's JSON files must hold; they may have been cut or changed since they were written."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenprune.evaluate.run_folder import RunFolder
from tokenprune.evaluate.samples import Sample
from tokenprune.strict_json import Check, check_fields, is_count, is_number, is_text, list_of


def read_cells(folder: RunFolder, cells: Sequence[str], samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Read the finished cells of a run, each checked against the data set.

    Args:
        folder: the run folder.
        cells: ids, in order; those that are not finished are left out.
        samples: the data set that the cells answer.

    Raises:
        ValueError: names the file that does not hold what a run writes.
    """
    return {
        cell: _checked(folder.cells / f"{cell}.json", partial(_check_cell, folder.read_cell(cell), cell, samples))
        for cell in cells
        if folder.has_cell(cell)
    }


def read_vision(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the times of the vision encoder, batch by batch; empty when they were not measured yet.

    Raises:
        ValueError: names the file when it does not hold what a run writes.
    """
    content = folder.read_json("vision.json")

    def check() -> dict[str, Any]:
        fields: dict[str, Check] = {"images": _is_positive, "seconds": _is_time, "counted": _is_flag}
        check_fields(content, {"batches": list_of(_is_object)}, where="vision")
        for place, batch in enumerate(content["batches"]):
            check_fields(batch, fields, where=f"batch {place}")
        return content

    return list(_checked(folder.path / "vision.json", check)["batches"]) if content else []


def read_sessions(folder: RunFolder) -> list[dict[str, Any]]:
    """Read when a run was started, stopped and resumed until now.

    Raises:
        ValueError: names the file when it does not hold what a run writes.
    """
    content = folder.read_json("run.json")

    def check() -> dict[str, Any]:
        fields: dict[str, Check] = {"started": is_text, "ended": is_text, "cells_run": is_count}
        fields["load_average"] = lambda value: value is None or _is_time(value)
        check_fields(content, {"sessions": list_of(_is_object)}, where="run")
        for place, session in enumerate(content["sessions"]):
            check_fields(session, fields, where=f"session {place}")
        return content

    return list(_checked(folder.path / "run.json", check)["sessions"]) if content else []


def _checked(file: Path, check: Any) -> dict[str, Any]:  # noqa: ANN401
    try:
        content: dict[str, Any] = check()
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and run again") from None
    return content


def _check_cell(content: Mapping[str, Any], cell: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """The content, when it is what `tokenprune.evaluate.runner.Runner.run` makes of this cell and these samples."""
    found = check_fields(
        content,
        {
            "cell": lambda value: value == cell,
            "strategy": lambda value: value is None or is_text(value),
            "positions": lambda value: value in ("original", "compact"),
            "samples": list_of(_is_object),
            "batches": list_of(_is_object),
        },
        where="cell",
    )
    if len(found["samples"]) != len(samples):
        raise ValueError(f"it has {len(found['samples'])} answers to {len(samples)} samples")
    for record, sample in zip(found["samples"], samples, strict=True):
        _check_record(record, sample)
    counts = 0
    for place, batch in enumerate(found["batches"]):
        times = dict.fromkeys(("selection", "prefill", "decode"), _is_time_or_none)
        required: dict[str, Check] = {"samples": _is_positive, "counted": _is_flag, **times}
        check_fields(batch, required, optional={"vision": _is_time}, where=f"batch {place}")
        counts += batch["samples"]
    if counts != len(samples):
        raise ValueError(f"its batches have {counts} of {len(samples)} samples")
    return found


def _check_record(record: object, sample: Sample) -> None:
    where = f"the answer to {sample.id!r}"
    found = check_fields(
        record,
        {
            "id": lambda value: value == sample.id,
            "answer": is_text,
            "output_tokens": is_count,
            "images": lambda value: list_of(_is_object)(value) and len(value) == len(sample.images),
        },
        where=where,
    )
    for picture in found["images"]:
        fields: dict[str, Check] = {"tokens_in": _is_positive, "tokens_out": is_count}
        fields["indices"] = lambda value: value is None or list_of(is_count)(value)
        check_fields(picture, fields, optional={"layer_average": _is_time}, where=where)
        if max(picture["indices"] or [0]) >= picture["tokens_in"]:
            raise ValueError(f"{where}: indices must be below tokens_in, {picture['tokens_in']}")


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return is_count(value) and value != 0


def _is_time(value: Any) -> bool:  # noqa: ANN401
    return is_number(value) and 0 <= value < 1e18


def _is_time_or_none(value: object) -> bool:
    return value is None or _is_time(value)
