"""run.json: under which conditions the numbers were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenprune.evaluate.cells import Cell
from tokenprune.evaluate.contract import text_sources
from tokenprune.evaluate.environment import git_state, package_versions, usable_cores
from tokenprune.evaluate.methods import CONTROLS
from tokenprune.evaluate.run_folder import SCHEMA_VERSION
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.statistics import CONFIDENCE, RESAMPLES
from tokenprune.evaluate.summary import Row

_TEXT_SOURCE = {
    "none": "chooses the same tokens for any question",
    "prompt": "input embeddings of every text token of the prompt, chat template included (Tokens.text)",
    "question": "input embeddings of the text tokens after the last image",
    "clip": "CLIP embeddings of the prompt",
    "decoder": "the language model's own signals at the layer where tokens are dropped, which have seen the prompt",
}
_TIMES = (
    "wall clock, median over batches of batch time / samples in batch, with quartiles; device synchronised; "
    "the first batch of a cell is not counted. vision: tower and projector, once per picture, shared by all cells. "
    "selection: the strategy and building the shorter prompt. prefill: embedding, forward pass, first token. "
    "decode: the rest."
)


def run_report(
    config: Mapping[str, Any],
    cells: Sequence[Cell],
    contents: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    samples: Sequence[Sample],
    *,
    sessions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of run.json.

    Args:
        config: the configuration.
        cells: the whole comparison.
        contents: finished cells by id.
        rows: the results table.
        samples: the data set.
        sessions: when the run was started, stopped and resumed.
    """
    lengths = [record["output_tokens"] for content in contents.values() for record in content["samples"]]
    policies = sorted({str(content["positions"]) for cell_id, content in contents.items() if cell_id != cells[0].id})
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "finished" if len(contents) == len(cells) else "interrupted",
        "cells": {"finished": len(contents), "total": len(cells)},
        "sessions": list(sessions),
        "versions": package_versions(),
        "git": git_state(),
        "cores": usable_cores(),
        "samples": len(samples),
        "resampling": {
            "unit": "image (samples that show the same images are drawn together)",
            "units": rows[0].accuracy.units if rows else 0,
            "method": f"scipy.stats.bootstrap, percentile, {RESAMPLES} resamples, {CONFIDENCE:.0%} interval",
            "p_random": "scipy.stats.permutation_test: method and Random change places, image by image",
            "p_random_holm": "Holm's correction of it over all methods at the budget (statsmodels)",
            "difference": "accuracy minus Random's at the same budget, paired by sample, Random averaged over seeds; "
            "of a fixed method Random's where it had as many tokens, mean over decoder layers, to the token",
        },
        "fixed": {
            row.method: {
                "tokens_in": row.tokens_in,
                "layer_average": row.tokens_out,
                "tokens_kept": row.tokens_kept,
                "random_keep": row.reference,
                "no_random": row.no_difference,
            }
            for row in rows
            if row.is_fixed
        },
        "metric": f"{config['metric']}, version {config['metric_version']}: after lower-casing, stripping punctuation "
        "without a meaning at word ends, collapsing white space (tokenprune.evaluate.normalise)",
        "position_policy": policies,
        "text_source": {row.method: row.text_source for row in rows if not row.is_dense},
        "text_source_meaning": _TEXT_SOURCE,
        "controls": {
            "dense": "the unpruned model",
            **{row.method: f"{row.seeds} seed{'s' if row.seeds > 1 else ''}" for row in rows if row.method in CONTROLS},
        },
        "times": _TIMES,
        "output_length": {
            "limit": config["max_new_tokens"],
            "mean": round(float(np.mean(lengths)), 3) if lengths else None,
            "longest": max(lengths, default=None),
        },
        "decoding": "greedy",
        "config": dict(config),
    }


def footer(report: Mapping[str, Any]) -> str:
    """The conditions in one line, for tables and figures."""
    config, length = report["config"], report["output_length"]
    limits = (
        ""
        if length["mean"] is None
        else f", answers of {length['mean']:.1f} tokens on average (limit {length['limit']})"
    )
    return (
        f"{config['model']['name']} on {config['data']['name']}: n = {report['samples']} questions, "
        f"{report['resampling']['units']} images, {config['metric']} v{config['metric_version']}; "
        f"positions {'/'.join(report['position_policy'])}; "
        f"text source: {text_sources(report['text_source'])}; {config['attention']} attention, {config['dtype']}, "
        f"{config['device_name']}, "
        f"{config['threads']} thread{'s' if config['threads'] > 1 else ''}, batch {config['batch_size']}{limits}"
    )
