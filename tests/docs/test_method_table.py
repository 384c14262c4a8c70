"""The README's method table is made from the classes: `python -m tests.docs.test_method_table` writes it again."""

import re
from pathlib import Path

from tokenprune.cli.strategies import facts

README = Path(__file__).resolve().parents[2] / "README.md"
BETWEEN = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- end of methods -->)", re.DOTALL)


def method_table() -> str:
    """One line per strategy: name, mechanism, needs, paper."""
    lines = ["| method | mechanism | needs | paper |", "|---|---|---|---|"]
    for fact in facts():
        wanted = fact["needs"]
        needs = ", ".join(f"`{name}`" for name in wanted) if isinstance(wanted, list) and wanted else "-"
        lines.append(f"| `{fact['name']}` | {fact['summary']} | {needs} | {fact['paper'] or '-'} |")
    return "\n".join(lines) + "\n"


def test_readme_lists_every_strategy_as_its_class_describes_it() -> None:
    found = BETWEEN.search(README.read_text())
    assert found is not None
    assert found.group() == method_table(), "run: python -m tests.docs.test_method_table"


if __name__ == "__main__":
    README.write_text(BETWEEN.sub(lambda _: method_table(), README.read_text()))
