"""Questions about a scene, and their one-word answers, from templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tokenprune.bundled.cards import Card, digit_word
from tokenprune.bundled.vocabulary import DIGITS, TEMPLATES

KINDS: Final[tuple[str, ...]] = tuple(TEMPLATES)
"""All question kinds."""
LOOKUPS: Final[tuple[str, ...]] = tuple(kind for kind in KINDS if "_by_" in kind)
"""Kinds whose answer sits on one card that the question names: which tokens matter depends on the question."""
COVERAGE: Final[tuple[str, ...]] = ("count", "largest", "smallest")
"""Kinds that need tokens of every card, whatever the question."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: one of ``KINDS``.
        text: the question, words separated by spaces, without any chat markup.
        answer: the one-word answer.
    """

    kind: str
    text: str
    answer: str


def _pick(cards: Sequence[Card], rng: np.random.Generator) -> Card:
    return cards[int(rng.integers(len(cards)))]


def _digit_by_colour(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"colour": card.colour}, digit_word(card.digit)


def _colour_by_digit(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"digit": digit_word(card.digit)}, card.colour


def _digit_by_region(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"region": card.region}, digit_word(card.digit)


def _colour_by_region(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"region": card.region}, card.colour


def _region_by_colour(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"colour": card.colour}, card.region


def _region_by_digit(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    card = _pick(cards, rng)
    return {"digit": digit_word(card.digit)}, card.region


def _exists(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    # A fair coin first, so that "yes" and "no" are equally frequent whatever the number of cards.
    shown = {card.digit for card in cards}
    present = bool(rng.integers(2))
    pool = sorted(shown) if present else [digit for digit in range(len(DIGITS)) if digit not in shown]
    return {"digit": digit_word(pool[int(rng.integers(len(pool)))])}, "yes" if present else "no"


def _count(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    return {}, digit_word(len(cards))


def _largest(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    return {}, digit_word(max(card.digit for card in cards))


def _smallest(cards: Sequence[Card], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    return {}, digit_word(min(card.digit for card in cards))


_RULES: Final[dict[str, Callable[[Sequence[Card], np.random.Generator], tuple[dict[str, str], str]]]] = {
    "digit_by_colour": _digit_by_colour,
    "colour_by_digit": _colour_by_digit,
    "digit_by_region": _digit_by_region,
    "colour_by_region": _colour_by_region,
    "region_by_colour": _region_by_colour,
    "region_by_digit": _region_by_digit,
    "exists": _exists,
    "count": _count,
    "largest": _largest,
    "smallest": _smallest,
}


def ask(kind: str, cards: Sequence[Card], rng: np.random.Generator) -> Question:
    """Ask one question of a kind about a set of cards.

    Args:
        kind: one of ``KINDS``.
        cards: the cards of a scene, with distinct digits, colours and regions.
        rng: decides which card or digit is asked about.

    Returns:
        The question with its answer.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in _RULES:
        raise ValueError(f"ask: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    fields, answer = _RULES[kind](cards, rng)
    return Question(kind, TEMPLATES[kind].format(**fields), answer)
