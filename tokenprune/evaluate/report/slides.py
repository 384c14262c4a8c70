"""Slides to page through; in a run folder a JSON file, and a folder of the same name with their pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenprune.evaluate.report.pictures import Pixels
from tokenprune.evaluate.run_folder import write_atomically
from tokenprune.strict_json import Check, check_fields, inside, is_number, is_text, list_of, read_json_object


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


def jpeg(pixels: Pixels, alt: str, *, quality: int = 82) -> Picture:
    """A picture for a card; JPEG, since overlays are photographs.

    Args:
        pixels: uint8 (height, width, 3).
        alt: what it shows, for readers who cannot see it.
        quality: of the JPEG, 1 to 95.
    """
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, optimize=True)
    return Picture(data=buffer.getvalue(), alt=alt, kind="jpeg")


def write_gallery(folder: Path, name: str, slides: Sequence[Slide]) -> str:
    """Write slides as `<name>.json` and their pictures as `<name>/<slide>-<card>.jpeg`.

    Args:
        folder: the run folder.
        name: of the gallery, a valid file name.
        slides: what to write.

    Returns:
        The name of the JSON file, for the manifest.
    """
    (folder / name).mkdir(exist_ok=True)
    content = []
    for number, slide in enumerate(slides):
        cards = []
        for place, card in enumerate(slide.cards):
            entry: dict[str, Any] = {"title": card.title, "lines": list(card.lines), "tone": card.tone}
            entry |= {"mark": card.mark, "words": [[word.text, word.probability, word.changed] for word in card.words]}
            if card.picture is not None:
                file = f"{name}/{number:03d}-{place:02d}.{card.picture.kind}"
                write_atomically(folder / file, card.picture.data)
                entry |= {"picture": file, "alt": card.picture.alt}
            cards.append(entry)
        content.append({"title": slide.title, "lines": list(slide.lines), "cards": cards})
    text = json.dumps({"slides": content}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}.json", text.encode())
    return f"{name}.json"


def read_gallery(folder: Path, file: str) -> list[Slide]:
    """The slides of a gallery.

    Raises:
        ValueError: when the file or one of its pictures is missing or damaged.
    """
    try:
        content = read_json_object(inside(folder, file))
        check_fields(content, {"slides": _is_list}, where="the gallery")
        return [_slide(folder, slide) for slide in content["slides"]]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / file} cannot be read ({error}); run the command again") from None


def _slide(folder: Path, entry: object) -> Slide:
    fields: dict[str, Check] = {"title": is_text, "lines": list_of(is_text), "cards": _is_list}
    slide = check_fields(entry, fields, where="a slide")
    cards = tuple(_card(folder, card) for card in slide["cards"])
    return Slide(title=slide["title"], lines=tuple(slide["lines"]), cards=cards)


def _card(folder: Path, entry: object) -> Card:
    fields: dict[str, Check] = {"title": is_text, "lines": list_of(is_text), "words": list_of(_is_word)}
    fields |= {"tone": lambda value: value in ("", "good", "bad"), "mark": is_text}
    card = check_fields(entry, fields, optional={"picture": is_text}, where="a card")
    picture = None
    if "picture" in card:
        check_fields(card, {"alt": is_text}, where="a card")
        path = inside(folder, card["picture"])
        picture = Picture(data=path.read_bytes(), alt=card["alt"], kind=path.suffix.lstrip("."))
    words = tuple(Word(text=text, probability=p, changed=changed) for text, p, changed in card["words"])
    return Card(
        title=card["title"],
        picture=picture,
        words=words,
        lines=tuple(card["lines"]),
        tone=card["tone"],
        mark=card["mark"],
    )


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_word(value: Any) -> bool:  # noqa: ANN401
    """Whether it is a text, its probability (or none) and whether it changed."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    text, probability, changed = value
    return is_text(text) and (probability is None or is_number(probability)) and isinstance(changed, bool)
