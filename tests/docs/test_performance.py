"""docs/performance.md shows what benchmarks/results/ says: `python -m tests.docs.test_performance` writes it again."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenprune.evaluate.cost import CONVENTION
from tokenprune.evaluate.cost.break_even import Point, token_break_even

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
Row = dict[str, str]


def rows(name: str) -> list[Row]:
    return list(csv.DictReader((RESULTS / f"{name}.csv").read_text().splitlines()))


def facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(row: Row, name: str, unit: float = 1.0) -> str:
    if not row.get(name):
        return "-"
    value = float(row[name]) / unit
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def growing(found: list[Row]) -> list[Row]:
    return [row for row in found if row["cache"] == "dynamic"]


def machine() -> str:
    found, model = facts("bench_break_even"), rows("bench_break_even")[0]
    versions, roof = found["versions"], found["roofline"]
    return (
        f"Measured on a CPU: {found['machine']}, {model['threads']} thread(s) of {found['cores']} cores, "
        f"{model['dtype']}, torch {versions['torch']}, transformers {versions['transformers']}, commit "
        f"{model['commit'] or 'unknown'}, load average {found['load_average']} at the end. A short probe reached "
        f"{roof['flops'] / 1e9:.0f} GFLOP/s and {roof['bandwidth'] / 1e9:.1f} GB/s. No GPU figure exists yet.\n"
    )


def selection() -> str:
    body, previous = [], ""
    for row in rows("bench_selection"):
        size = f"{row['n']} to {row['k']}, width {row['d']}, batch {row['batch']}"
        names = ("ms", "times_product", "single_ms")
        body.append([size if size != previous else "", f"`{row['method']}`", *(number(row, name) for name in names)])
        previous = size
    return table(["tokens", "method", "ms per image", "x product", "one by one"], body)


def model() -> str:
    body = []
    for row in growing(rows("bench_model")):
        body.append(
            [
                row["batch"],
                f"`{row['strategy']}`",
                number(row, "vision_ms"),
                number(row, "selection_ms"),
                f"{number(row, 'prefill_ms')} (floor {number(row, 'prefill_floor_ms')})",
                number(row, "first_token_ms"),
                number(row, "first_token_speedup"),
                f"{number(row, 'decode_step_ms')} (floor {number(row, 'decode_step_floor_ms')})",
                number(row, "tokens_per_second"),
                number(row, "kv_bytes", 2**20),
                number(row, "peak_bytes", 2**20),
                row["pays_at_output"] or "-",
            ]
        )
    head = ["batch", "strategy", "vision", "selection", "prefill", "first token", "x dense", "step", "tokens/s"]
    return table([*head, "KV MiB", "peak MiB", "pays at"], body)


def points() -> list[Point]:
    return [
        Point(
            tokens=int(row["visual_tokens"]),
            saved=float(row["dense_prefill_ms"]) - float(row["pruned_prefill_ms"]),
            spent=float(row["selection_ms"]),
        )
        for row in growing(rows("bench_break_even"))
    ]


def break_even() -> str:
    names = ("dense_prefill_ms", "pruned_prefill_ms", "selection_ms", "gain_ms")
    found = growing(rows("bench_break_even"))
    body = [[row["visual_tokens"], row["tokens_kept"], *(number(row, name) for name in names)] for row in found]
    start, smallest = token_break_even(points()), min(point.tokens for point in points())
    if start is None:
        text = "It does not pay at the largest size."
    elif start == smallest:
        text = f"It pays at every size that was measured, down to {smallest}."
    else:
        text = f"It pays from about {start:.0f} visual tokens on."
    head = ["visual tokens", "kept", "dense prefill ms", "pruned prefill ms", "selection ms", "won ms"]
    return f"{table(head, body)}\n`{found[0]['strategy']}`: {text[0].lower()}{text[1:]}\n"


def compiled() -> str:
    found = [row for row in rows("bench_model") if row["batch"] == "1"]
    kept = {row["strategy"] for row in found if row["cache"] == "static"}
    body = [
        [
            f"`{row['strategy']}`",
            row["cache"],
            row["compiler"] or "none",
            number(row, "prefill_ms"),
            number(row, "decode_step_ms"),
            number(row, "kv_bytes", 2**20),
        ]
        for row in found
        if row["strategy"] in kept
    ]
    if not body:
        return "Not measured in these files.\n"
    head = ["strategy, batch 1", "cache", "compiler", "prefill ms", "step ms", "KV MiB"]
    return (
        table(head, body)
        + "\n`python -m benchmarks compiled` measures these rows; `make bench` leaves them as they are.\n"
    )


def losses() -> str:
    """The unwelcome part, read off the same files."""
    pruned = [row for row in growing(rows("bench_model")) if row["selection_ms"]]
    first = [row for row in pruned if row["batch"] == "1"]
    worst = max(pruned, key=lambda row: float(row["selection_share_of_prefill"]))
    lines = [
        f"- **Selection against the prefill it shortens.** The worst row above: `{worst['strategy']}` at batch "
        f"{worst['batch']} spends {number(worst, 'selection_ms')} ms choosing before a prefill of "
        f"{number(worst, 'prefill_ms')} ms, {100 * float(worst['selection_share_of_prefill']):.0f}% of it. "
        "A larger model has more layers behind one and the same choice: the smaller the model, the larger that share."
    ]
    longer = [row for row in pruned if float(row["selection_ms"]) > float(row["prefill_ms"])]
    text = ", ".join(f"`{row['strategy']}` at batch {row['batch']}" for row in longer) or "none in the table above"
    lines.append(f"- **Selection longer than the pruned prefill:** {text}.")
    lost = [point for point in points() if point.gain <= 0]
    text = ", ".join(f"{point.tokens} visual tokens ({point.gain:.3g} ms)" for point in lost) or "at no size measured"
    lines.append(f"- **Short prompts.** Time is lost at: {text}.")
    pace = [float(row["decode_step_speedup"]) for row in first]
    lines.append(
        f"- **Batch 1.** Further tokens come {min(pace):.2f} to {max(pace):.2f} times as fast as dense: a step works "
        "on one token per prompt, and its cost is mostly not the cache. The first token comes "
        f"{min(float(row['first_token_speedup']) for row in first):.2f} to "
        f"{max(float(row['first_token_speedup']) for row in first):.2f} times as fast."
    )
    bounded = [row for row in pruned if row["pays_at_output"] != "1 or more"]
    text = ", ".join(f"`{row['strategy']}` at batch {row['batch']}: {row['pays_at_output']}" for row in bounded)
    lines.append(f"- **Output lengths** other than all at which pruning pays: {text or 'none in the table above'}.")
    large = max(pruned, key=lambda row: (int(row["batch"]), -float(row["tokens_in_decoder"])))
    share = float(large["vision_ms"]) / float(large["first_token_ms"])
    lines.append(
        f"- **The vision tower stays.** At batch {large['batch']} with `{large['strategy']}` it is {100 * share:.0f}% "
        "of the time to the first token."
    )
    return "\n".join(lines) + "\n"


def profile() -> str:
    found = facts("compare_profile")
    body = [
        [row["part"], f"{float(row['seconds']):.1f}", f"{100 * float(row['share']):.1f}%"]
        for row in rows("compare_profile")
    ]
    text = f"{found['questions']} questions, {found['seconds']:.0f} s in all, load average {found['load_average']}.\n"
    return f"{table(['part', 'seconds', 'share'], body)}\n{text}"


def waste() -> str:
    before, after = rows("compare_waste")
    seconds, size = ([float(row[name]) for row in (before, after)] for name in ("cpu_seconds", "bytes"))
    return (
        "The largest avoidable part was the figure of kept tokens: `savefig` drew it twice and compressed an alpha "
        f"channel. Drawn once, without it, the figure takes {seconds[1]:.2f} instead of {seconds[0]:.2f} processor "
        f"seconds ({float(after['times_faster']):.2f} times as fast, measured in turn in one run) and "
        f"{size[1] / 2**20:.1f} instead of {size[0] / 2**20:.1f} MiB.\n"
    )


def convention() -> str:
    return f"{CONVENTION[0].upper()}{CONVENTION[1:]}.\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "machine": machine,
    "selection": selection,
    "model": model,
    "break-even": break_even,
    "compiled": compiled,
    "losses": losses,
    "profile": profile,
    "waste": waste,
    "convention": convention,
}


def between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_page_says_what_was_measured(name: str) -> None:
    found = between(name).search(PAGE.read_text())
    assert found is not None
    assert found.group() == BLOCKS[name](), "run: python -m tests.docs.test_performance"


def test_every_block_of_the_page_is_made_here() -> None:
    assert re.findall(r"<!-- end of (\S+) -->", PAGE.read_text()) == list(BLOCKS)


if __name__ == "__main__":
    text = PAGE.read_text()
    for block, make in BLOCKS.items():
        text = between(block).sub(lambda _, make=make: make(), text)  # type: ignore[misc]
    PAGE.write_text(text)
