"""The tables of `tokenprune bench model`."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tokenprune.cli.bench_common import new_table, number
from tokenprune.cli.console import make_console

_MEBIBYTE = 2**20


def print_model(rows: Sequence[dict[str, Any]], where: dict[str, Any], source: str) -> None:
    """Dense against pruned, batch by batch."""
    console = make_console(least=160)
    table = new_table(
        "Batch", "Strategy", "Tokens", "Vision", "Selection", "Prefill", "(floor)", "First token", "x dense", "Step",
        "(floor)", "Tokens/s", "KV MiB", "Peak MiB", "Pays at",
    )  # fmt: skip
    for batch, group in groupby(rows, key=lambda row: row["batch"]):
        for place, row in enumerate(group):
            table.add_row(
                batch if place == 0 else "",
                row["strategy"],
                number(row, "tokens_in_decoder"),
                number(row, "vision_ms"),
                number(row, "selection_ms"),
                number(row, "prefill_ms"),
                number(row, "prefill_floor_ms"),
                number(row, "first_token_ms"),
                number(row, "first_token_speedup"),
                number(row, "decode_step_ms"),
                number(row, "decode_step_floor_ms"),
                number(row, "tokens_per_second"),
                number(row, "kv_bytes", _MEBIBYTE),
                number(row, "peak_bytes", _MEBIBYTE),
                row.get("pays_at_output") or "-",
            )
        table.add_section()
    console.print(table)
    compiler = f", compiled by {where['compiler']}" if where["compiler"] else ""
    peak = rows[0]["peak_of"] if rows else ""
    text = (
        f"{where['config']}, random weights, {where['device']}, {where['dtype']}, {where['attention']} attention, "
        f"{where['threads']} threads, {where['text_tokens']} text and {where['new_tokens']} new tokens, "
        f"{where['cache']} cache{compiler}. Median ms for the whole batch; first token: vision, selection and prefill; "
        f"step: one further token. Tokens: visual tokens per prompt, mean over decoder layers. Floors: {source}. Peak: "
        f"{peak}. Pays at: output lengths at which pruned is sooner than dense."
    )
    console.print(text, style="dim", markup=False)


def print_break_even(rows: Sequence[dict[str, Any]]) -> None:
    """Prompt sizes, and the size from which on the first token comes sooner."""
    from tokenprune.evaluate.cost.break_even import Point, token_break_even

    console = make_console(least=160)
    for strategy, group in groupby(rows, key=lambda row: row["strategy"]):
        found = list(group)
        table = new_table("Visual tokens", "Kept", "Dense prefill", "Pruned prefill", "Selection", "Won")
        for row in found:
            names = ("dense_prefill_ms", "pruned_prefill_ms", "selection_ms", "gain_ms")
            table.add_row(row["visual_tokens"], row["tokens_kept"], *(number(row, name) for name in names))
        console.print(f"\n{strategy}, batch 1, ms until the first token without vision", markup=False)
        console.print(table)
        points = [
            Point(
                tokens=int(row["visual_tokens"]),
                saved=float(row["dense_prefill_ms"]) - float(row["pruned_prefill_ms"]),
                spent=float(row["selection_ms"]),
            )
            for row in found
        ]
        start = token_break_even(points)
        smallest = min(point.tokens for point in points)
        if start is None:
            text = "Pruning does not pay at the largest size."
        elif start == smallest:
            text = f"Pruning pays from {smallest} visual tokens on or below, the smallest size measured."
        else:
            text = f"Pruning pays from about {start:.0f} visual tokens on."
        console.print(text, style="dim", markup=False)
