"""Answers are recomputed here from the words of the question alone, by other code than the one that made them."""

import re

import numpy as np
import pytest

from tokenprune.bundled import COVERAGE, KINDS, LOOKUPS, Question, Scene, load_scenes
from tokenprune.bundled.cards import lay_out
from tokenprune.bundled.questions import ask

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def recompute(scene: Scene, question: Question) -> str:
    facts = [{NUMBERS[card.digit], card.colour, card.region} for card in scene.cards]
    text = question.text
    if text == "how many cards are there ?":
        return NUMBERS[len(facts)]
    if match := re.fullmatch(r"which is the (largest|smallest) digit \?", text):
        order = sorted(card.digit for card in scene.cards)
        return NUMBERS[order[-1 if match[1] == "largest" else 0]]
    if match := re.fullmatch(r"is there a (\w+) \?", text):
        return "yes" if any(match[1] in fact for fact in facts) else "no"
    key = text.split()[-2]
    (card,) = [card for card, fact in zip(scene.cards, facts, strict=True) if key in fact]
    if text.startswith("which digit"):
        return NUMBERS[card.digit]
    return card.colour if text.startswith("what color") else card.region


def test_answers_follow_from_the_cards() -> None:
    for scene in load_scenes("validation", count=40, seed=3):
        assert [question.kind for question in scene.questions] == list(KINDS)
        for question in scene.questions:
            assert question.answer == recompute(scene, question), (scene.id, question)


def test_kinds_are_sorted_into_lookups_coverage_and_the_rest() -> None:
    assert set(LOOKUPS) | set(COVERAGE) | {"exists"} == set(KINDS)
    assert not set(LOOKUPS) & set(COVERAGE)


def test_no_answer_is_given_away_by_its_frequency() -> None:
    rng = np.random.default_rng(0)
    scenes = [lay_out(rng) for _ in range(600)]
    for kind in KINDS:
        answers = [ask(kind, cards, rng).answer for cards in scenes]
        common = max(answers.count(word) for word in set(answers)) / len(answers)
        assert common < (0.56 if kind == "exists" else 0.33), kind


def test_ask_refuses_an_unknown_kind() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind must be one of .*largest.*, got 'shape'"):
        ask("shape", lay_out(rng), rng)
