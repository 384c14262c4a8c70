"""The files of a run folder that people and other programs read: samples.jsonl, selections.parquet, results.csv."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenprune.evaluate.cells import Cell
from tokenprune.evaluate.contract import CONDITIONS, conditions
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION
from tokenprune.evaluate.report import frame
from tokenprune.evaluate.run_folder import RunFolder, write_atomically
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.statistics import agreement
from tokenprune.evaluate.summary import STAGES, Row, correctness

if TYPE_CHECKING:
    import pandas as pd


def samples_jsonl(cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]], samples: Sequence[Sample]) -> str:
    """One line per finished cell and sample: answer, right or not, agreement with dense. No times: it repeats."""
    lines = []
    dense = contents.get(cells[0].id)
    for cell in cells:
        content = contents.get(cell.id)
        if content is None or dense is None:
            continue
        right = correctness(content, samples)
        same = agreement([r["answer"] for r in content["samples"]], [r["answer"] for r in dense["samples"]])
        for sample, record, correct, agrees in zip(samples, content["samples"], right, same, strict=True):
            entry = {
                "cell": cell.id,
                "method": cell.method,
                "keep": cell.keep,
                "seed": cell.seed,
                "sample": sample.id,
                "kind": sample.kind,
                "question": sample.question,
                "answer": record["answer"],
                "references": list(sample.answers),
                "correct": correct,
                "metric": METRIC,
                "metric_version": METRIC_VERSION,
                "agrees_with_dense": agrees,
                "output_tokens": record["output_tokens"],
            }
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def selections_parquet(cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """One row per finished cell, sample and image: tokens in, tokens kept, and which (null for dense: all of them)."""
    pa = need("pyarrow")
    rows = [
        {
            "cell": cell.id,
            "method": cell.method,
            "strategy": None if cell.strategy is None else repr(cell.strategy),
            "keep": None if cell.keep is None else str(cell.keep),
            "seed": cell.seed,
            "sample": record["id"],
            "image": number,
            "tokens_in": picture["tokens_in"],
            "tokens_out": picture["tokens_out"],
            "indices": picture["indices"],  # null for dense: all of them
        }
        for cell in cells
        if cell.id in contents
        for record in contents[cell.id]["samples"]
        for number, picture in enumerate(record["images"])
    ]
    schema = pa.schema(
        [
            *[(name, pa.string()) for name in ("cell", "method", "strategy", "keep")],
            ("seed", pa.int64()),
            ("sample", pa.string()),
            *[(name, pa.int32()) for name in ("image", "tokens_in", "tokens_out")],
            ("indices", pa.list_(pa.int32())),
        ]
    )
    sink = pa.BufferOutputStream()
    need("pyarrow.parquet").write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def results_frame(rows: Sequence[Row], config: Mapping[str, Any]) -> "pd.DataFrame":
    """Give the results table with everything in it; shares are in [0, 1], times in milliseconds per sample.

    Args:
        rows: the results table.
        config: of the run; every row repeats the conditions, so that tables of several runs can be put together.
    """
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.kinds if kind))
    header = ["method", "keep", "seeds", "n", "tokens_in", "tokens_out", "accuracy", "accuracy_low", "accuracy_high"]
    header += ["seed_sd", "minus_random", "minus_random_low", "minus_random_high"]
    header += ["p_random", "p_random_holm", "random_keep", "no_random", "resampled_units", "agreement"]
    header += ["right_to_wrong", "wrong_to_right", "output_tokens"]
    header += ["tokens_kept", "tokens_least", "tokens_most", "positions", "text_source"]
    header += [f"{stage}_ms{end}" for stage in STAGES for end in ("", "_q25", "_q75")]
    header += CONDITIONS
    same = list(conditions(config).values())
    table: list[list[object]] = []
    for row in rows:
        difference = row.difference
        values: list[object] = [row.method, row.keep, row.seeds, row.samples, row.tokens_in, row.tokens_out]
        values += [row.accuracy.value, row.accuracy.low, row.accuracy.high, row.seed_sd]
        values += [None] * 3 if difference is None else [difference.value, difference.low, difference.high]
        values += [row.p_value, row.p_corrected, row.reference, row.no_difference]
        values += [row.accuracy.units, row.agreement, row.right_to_wrong, row.wrong_to_right, row.output_tokens]
        values += [row.tokens_kept, *row.tokens_range, row.positions, row.text_source]
        for stage in STAGES:
            spread = row.times.get(stage)
            values += [None] * 3 if spread is None else [spread.median, spread.low, spread.high]
        values += same
        values += [row.kinds.get(kind) for kind in kinds]
        table.append(values)
    return frame(header + [f"accuracy_{kind}" for kind in kinds], table)


def export(
    folder: RunFolder,
    cells: Sequence[Cell],
    contents: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Sample],
) -> None:
    """Write the two files from the cells that are finished."""
    write_atomically(folder.path / "samples.jsonl", samples_jsonl(cells, contents, samples).encode())
    write_atomically(folder.path / "selections.parquet", selections_parquet(cells, contents))
