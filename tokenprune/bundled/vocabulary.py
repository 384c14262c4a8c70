"""The closed vocabulary of the bundled model: every word it can read or say.

The tokenizer is word-level and its ids are fixed by the order in this file, so that training code can build id
sequences without a tokenizer and a test can prove that both agree.
"""

from __future__ import annotations

from typing import Final

PAD: Final = "<pad>"
BOS: Final = "<s>"
EOS: Final = "</s>"
UNK: Final = "<unk>"
IMAGE: Final = "<image>"
SPECIAL: Final[tuple[str, ...]] = (PAD, BOS, EOS, UNK, IMAGE)

DIGITS: Final[tuple[str, ...]] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (215, 40, 45),
    "orange": (240, 140, 30),
    "yellow": (240, 225, 60),
    "green": (45, 150, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 205),
    "purple": (145, 55, 175),
    "white": (240, 240, 240),
}
"""Colour words and their RGB centres (0 to 255), chosen far apart so that jitter never confuses two of them."""

REGIONS: Final[tuple[str, ...]] = (
    "northwest",
    "north",
    "northeast",
    "west",
    "center",
    "east",
    "southwest",
    "south",
    "southeast",
)
"""One word for each cell of a 3 x 3 division of the image, in row-major order.

Two-word names ("top left") were much harder to learn for a language model of this size.
"""

BACKGROUND: Final = "photo"
"""The word that the embedding of a patch without a card is aligned with."""

SYSTEM: Final = "answer in one word ."
USER: Final = "user :"
ASSISTANT: Final = "assistant :"

TEMPLATES: Final[dict[str, str]] = {
    "digit_by_colour": "which digit is on {colour} ?",
    "colour_by_digit": "what color is the {digit} ?",
    "digit_by_region": "which digit is in the {region} ?",
    "colour_by_region": "what color is in the {region} ?",
    "region_by_colour": "where is {colour} ?",
    "region_by_digit": "where is the {digit} ?",
    "exists": "is there a {digit} ?",
    "count": "how many cards are there ?",
    "largest": "which is the largest digit ?",
    "smallest": "which is the smallest digit ?",
}
"""Question kinds and their wording; the fields in braces are filled with a word of this file."""


def _words() -> tuple[str, ...]:
    seen: dict[str, None] = dict.fromkeys(SPECIAL)
    seen.update(dict.fromkeys((*DIGITS, *COLOURS, *REGIONS, BACKGROUND, "yes", "no")))
    for text in (SYSTEM, USER, ASSISTANT, *TEMPLATES.values()):
        seen.update(dict.fromkeys(word for word in text.split() if not word.startswith("{")))
    return tuple(seen)


WORDS: Final[tuple[str, ...]] = _words()
"""All tokens in id order, the special ones first."""

IDS: Final[dict[str, int]] = {word: index for index, word in enumerate(WORDS)}
"""Token to id."""


def encode(text: str) -> list[int]:
    """Ids of a text whose words are separated by spaces.

    Args:
        text: words of this vocabulary, for instance ``"is there a seven ?"``.

    Returns:
        One id per word; no BOS is added.

    Raises:
        ValueError: a word is not in the vocabulary.

    >>> [WORDS[i] for i in encode("is there a seven ?")]
    ['is', 'there', 'a', 'seven', '?']
    """
    unknown = sorted({word for word in text.split() if word not in IDS})
    if unknown:
        raise ValueError(f"encode: text has words that are not in tokenprune.bundled.vocabulary.WORDS: {unknown}")
    return [IDS[word] for word in text.split()]
