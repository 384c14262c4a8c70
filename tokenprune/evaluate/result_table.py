"""The results table as text: the terminal and the report print the same cells."""

from collections.abc import Sequence
from itertools import groupby

from tokenprune.evaluate.methods import CONTROLS, show_budget
from tokenprune.evaluate.report import Shown
from tokenprune.evaluate.summary import STAGES, Row

LEVEL = 0.05
"""Corrected p-values above it show nothing."""
ANSWERS = ("Acc %", "vs Random [95% CI]", "Agree %", "R→W", "W→R")


def results_summary(rows: Sequence[Row], *, metric: str) -> Shown:
    """Every row with everything that the reporting contract asks for.

    Args:
        rows: the results table.
        metric: its exact name.
    """
    columns: tuple[str, ...] = ("Method", "Budget", "Tokens", f"Acc %\n({metric})", ANSWERS[1], "p, Holm", *ANSWERS[2:])
    columns += ("n", "Seeds", "Kept,\nleast-most", "Positions", "Reads of\nthe prompt", "Answer\ntokens")
    columns += tuple(f"{stage.capitalize()}\nms" for stage in STAGES)
    body = []
    for row in rows:
        accuracy, difference, *rest = answers_text(row)
        body.append(
            (
                row.method,
                budget_text(row),
                tokens_text(row),
                accuracy,
                difference,
                "-" if row.p_corrected is None else f"{row.p_corrected:.2g}",
                *rest,
                str(row.samples),
                str(row.seeds),
                "-".join(map(str, dict.fromkeys(row.tokens_range))),
                row.positions,
                row.text_source,
                f"{row.output_tokens:.1f}",
                *times_text(row),
            )
        )
    return Shown(
        title="Results",
        columns=columns,
        rows=tuple(body),
        note=f"{legend(rows)} p: of the difference to Random, two-sided, images exchanged in pairs, corrected over the "
        "methods of a budget.",
        strong=leaders(rows),
    )


def leaders(rows: Sequence[Row]) -> tuple[int, ...]:
    """Places of the rows that alone have the highest accuracy at their budget."""
    found = []
    for budget in dict.fromkeys(repr(row.keep) for row in rows if row.keep is not None):
        places = [place for place, row in enumerate(rows) if repr(row.keep) == budget]
        best = max(rows[place].accuracy.value for place in places)
        first = [place for place in places if rows[place].accuracy.value == best]
        if len(first) == 1 and len(places) > 1:
            found += first
    return tuple(found)


def kinds_summary(rows: Sequence[Row]) -> Shown:
    """Accuracy by kind of question."""
    return Shown(
        title="Accuracy by kind of question, %",
        columns=("Method", "Tokens", *(kind or "(none)" for kind in rows[0].kinds)),
        rows=tuple(
            (row.method, tokens_text(row), *(f"{100 * value:.0f}" for value in row.kinds.values())) for row in rows
        ),
    )


def findings(rows: Sequence[Row]) -> tuple[str, ...]:
    """The table in sentences: per budget the best row, and what does not beat the controls; then fixed methods."""
    told = []
    for _, group in groupby((row for row in rows if row.keep is not None), key=lambda row: repr(row.keep)):
        members = list(group)
        controls = [row for row in members if row.method in CONTROLS]
        best = max(members, key=_accuracy)
        text = f"At a budget of {show_budget(best.keep or 0)}: best is {best.method} with {_percent(best)}"
        if controls:
            control = max(controls, key=_accuracy)
            text += "." if control is best else f"; the best control is {control.method} with {_percent(control)}."
            behind = [
                row.method
                for row in members
                if row.method not in CONTROLS and row.accuracy.value <= control.accuracy.value
            ]
            if behind:
                text += f" Not better than that control: {', '.join(behind)}."
        judged = [(row.method, row.difference, row.p_corrected) for row in members if row.difference is not None]
        weak = [method for method, difference, p in judged if difference.value <= 0 or p is None or p > LEVEL]
        if weak:
            text += f" Not shown to beat Random (corrected p above {LEVEL:g}, or no gain): {', '.join(weak)}."
        told.append(text)
    for row in rows:
        if row.is_fixed:
            text = f"{row.method} has no budget to set and reached {tokens_text(row)} tokens: {_percent(row)}"
            if row.difference is None:
                told.append(f"{text}; not compared: {row.no_difference}.")
            else:
                shown = "p = -" if row.p_corrected is None else f"corrected p = {row.p_corrected:.2g}"
                difference = _signed(row.difference.value, row.difference.low, row.difference.high)
                told.append(f"{text}; minus Random at {show_budget(row.reference or 0)}: {difference}, {shown}.")
    return tuple(told)


def _accuracy(row: Row) -> float:
    return row.accuracy.value


def _percent(row: Row) -> str:
    return f"{100 * row.accuracy.value:.1f}%"


def legend(rows: Sequence[Row]) -> str:
    """What the columns mean, in a few lines."""
    seeds = max(row.seeds for row in rows)
    budgets = ", ".join(show_budget(row.keep) for row in rows if row.keep is not None and row.method == "random")
    return (
        f"Budgets: {budgets}. Tokens: visual tokens per image, mean over decoder layers, and what is left behind the "
        "last where that differs. Bold: highest accuracy at the budget. "
        f"Random: mean ± standard deviation over {seeds} seeds. vs Random: points, paired bootstrap. "
        "Agree: same answer as the dense model; "
        "R→W, W→R: answers that turned from right to wrong and back (random: mean). "
        f"Times: median ms per question; vision is computed once per picture and shared.{_fixed_note(rows)}"
    )


def budget_text(row: Row) -> str:
    """The budget; of a fixed method what it reached, as shares of the image's original tokens."""
    if row.is_fixed:
        layers, left = (f"{100 * tokens / row.tokens_in:.1f}%" for tokens in (row.tokens_out, row.tokens_kept))
        return f"fixed: {layers} per layer, {left} left"
    return "-" if row.keep is None else show_budget(row.keep)


def _fixed_note(rows: Sequence[Row]) -> str:
    """How fixed methods are to be read; "" when there is none."""
    fixed = [row for row in rows if row.is_fixed]
    if not fixed:
        return ""
    gaps = "; ".join(f"{row.method}: {row.no_difference}" for row in fixed if row.no_difference)
    return (
        " Methods without a budget stand last, with what they reached, and are compared with Random only where Random "
        f"had as many tokens, mean over decoder layers, to the token{f' ({gaps})' if gaps else ''}."
    )


def tokens_text(row: Row) -> str:
    """Tokens per image and layer and their share; where fewer are left in the end, how many."""
    share = "" if row.is_dense else f" ({100 * row.tokens_out / row.tokens_in:.1f}%)"
    left = f", {row.tokens_kept:.0f} left" if round(row.tokens_kept) != round(row.tokens_out) else ""
    return f"{row.tokens_out:.0f}{share}{left}"


def answers_text(row: Row) -> list[str]:
    """The cells under `ANSWERS`."""
    accuracy = f"{100 * row.accuracy.value:.1f}"
    if row.seed_sd is not None:
        accuracy += f" ±{100 * row.seed_sd:.1f}"
    difference = (
        "-" if row.difference is None else _signed(row.difference.value, row.difference.low, row.difference.high)
    )
    flips = ["-", "-"] if row.is_dense else [f"{row.right_to_wrong:.0f}", f"{row.wrong_to_right:.0f}"]
    return [accuracy, difference, "-" if row.is_dense else f"{100 * row.agreement:.1f}", *flips]


def _signed(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def times_text(row: Row) -> list[str]:
    """Median milliseconds per question, one cell per stage."""
    return ["-" if stage not in row.times else f"{row.times[stage].median:.2f}" for stage in STAGES]
