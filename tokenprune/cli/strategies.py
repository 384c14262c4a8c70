"""`tokenprune strategies`: every registered strategy with what it needs, where it acts and where it comes from."""

import json as json_module

from cyclopts import App

from tokenprune.cli.console import make_console
from tokenprune.cli.options import JsonFlag

app = App(name="strategies")


def facts() -> list[dict[str, object]]:
    """Give the facts about every strategy, sorted: methods with a paper first, then the rest, by name."""
    from tokenprune.core.text import example as example_of
    from tokenprune.core.text import strategies as known
    from tokenprune.models.plan import site_of

    entries: list[dict[str, object]] = []
    for name, cls in sorted(known().items(), key=lambda item: (not item[1].paper, item[0])):
        example = example_of(cls)
        entries.append(
            {
                "name": name,
                "class": f"{cls.__module__}.{cls.__qualname__}",
                "summary": cls.summary(),
                "paper": cls.paper,
                "needs": sorted(signal.name for signal in example.needs if signal.required),
                "uses": sorted(signal.name for signal in example.needs if not signal.required),
                "site": site_of(example.place),
                "positions": example.place.positions,
                "merges": example.yields == "merged",
                "example": repr(example),
            }
        )
    return entries


def fact_table(*names: str) -> str:
    """The facts about some strategies as a Markdown table; the methods' pages print it.

    Args:
        names: of registered strategies.

    Raises:
        ValueError: when one of them is not registered.
    """
    known = {str(entry["name"]): entry for entry in facts()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"fact_table: no strategy is called {unknown[0]!r}; known: {', '.join(known)}")
    lines = ["| name | needs | uses | site | positions | makes new tokens |", "|---|---|---|---|---|---|"]
    for name in names:
        entry = known[name]
        needs, uses = (", ".join(f"`{field}`" for field in _words(entry[key])) or "-" for key in ("needs", "uses"))
        merges = "yes" if entry["merges"] else "no"
        lines.append(f"| `{name}` | {needs} | {uses} | {entry['site']} | {entry['positions']} | {merges} |")
    return "\n".join(lines)


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


@app.default
def strategies(*, json: JsonFlag = False) -> int:
    """List every strategy, those of installed packages included."""
    entries = facts()
    if json:
        print(json_module.dumps(entries, indent=2))
        return 0
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("Name", "Mechanism", "Needs", "Site", "Paper"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        needs = entry["needs"]
        shown = ", ".join(needs) if isinstance(needs, list) else ""
        origin = "" if str(entry["class"]).startswith("tokenprune.") else f" [{entry['class']}]"
        texts = (
            f"{entry['name']}",
            f"{entry['summary']}{origin}",
            shown or "-",
            f"{entry['site']}",
            f"{entry['paper']}" or "-",
        )
        table.add_row(*texts)
    console = make_console()
    console.print(table, markup=False)
    console.print('\nWrite them as text: "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)"', markup=False)
    return 0
