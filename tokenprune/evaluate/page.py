"""What a report page shows, as plain values: sections of tables, figures and galleries, and how the run was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture that goes into the page itself.

    Attributes:
        data: the file's content.
        alt: what it shows, for readers who cannot see it.
        kind: "png" or "jpeg".
    """

    data: bytes = field(repr=False)
    alt: str
    kind: str = "png"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its caption."""

    picture: Picture
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that readers can sort.

    Attributes:
        headers: one per column.
        rows: cells as they are printed; a column whose cells begin with numbers sorts by these numbers.
        title: above the table.
        note: what the columns mean, underneath.
        strong: numbers of rows printed bold.

    Raises:
        ValueError: when a row has another number of cells than there are headers.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    strong: Sequence[int] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(
                    f"Table {self.title!r}: every row needs {len(self.headers)} cells, one per header, got {len(row)}"
                )


@dataclass(frozen=True, kw_only=True)
class Word:
    """One token of an answer; `probability` None where it was not measured, `changed` against the dense answer."""

    text: str
    probability: float | None = None
    changed: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """One method's part of a slide.

    Attributes:
        title: for example the method.
        picture: for example what it kept.
        words: the answer, token by token.
        lines: small print, for example the number of kept tokens.
        tone: "good", "bad" or "": the colour of its edge.
        mark: a word for the tone, so that colour is not the only sign.
    """

    title: str
    picture: Picture | None = None
    words: Sequence[Word] = ()
    lines: Sequence[str] = ()
    tone: str = ""
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One page of a gallery: one sample, say, with a card per method."""

    title: str
    cards: Sequence[Card]
    lines: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Slides that readers page through."""

    slides: Sequence[Slide]
    title: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headline with what stands under it."""

    title: str
    blocks: Sequence[Figure | Table | Gallery] = ()
    text: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: headline.
        subtitle: the conditions in one line.
        findings: sentences that come first.
        sections: the content.
        command: what to type to get this report again; "" for a call from Python.
        config: what the numbers depend on, as plain JSON values.
        versions: of the packages.
        facts: further conditions by name, for example the machine.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    findings: Sequence[str] = ()
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
