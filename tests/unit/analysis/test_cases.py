"""Case studies: probabilities against a forward pass without a cache, the order of cases, what counts as changed."""

import math

import pytest
import torch

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples
from tokenprune import GreedyRepMax, parse
from tokenprune.analysis import Case, Told, case_slide, different, most_changed, study_cases
from tokenprune.evaluate.batches import processed
from tokenprune.evaluate.loading import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def cases(loaded: LoadedModel) -> list[Case]:
    strategies = [GreedyRepMax(1.0), parse("greedy_repmax(keep=3)"), parse("fastv(keep=2, layer=1)")]
    return study_cases(loaded, tiny_samples(3, answers=("w51 w18",)), strategies, max_new_tokens=4)


def test_probabilities_are_those_of_a_forward_pass_over_prompt_and_answer(
    loaded: LoadedModel, cases: list[Case]
) -> None:
    for case in cases:
        inputs = processed(loaded.processor, [case.sample])
        out = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        length = inputs["input_ids"].shape[1]
        mask = torch.ones_like(out)
        with torch.no_grad():
            logits = loaded.model(input_ids=out, attention_mask=mask, pixel_values=inputs["pixel_values"]).logits[0]
        expected = [
            float(logits[place - 1].float().softmax(-1)[out[0, place]]) for place in range(length, out.shape[1])
        ]
        assert case.dense.probabilities == pytest.approx(expected, rel=1e-4)
        assert len(case.dense.tokens) == len(expected)
        assert case.dense.log_probability == pytest.approx(sum(map(math.log, expected)) / len(expected), rel=1e-4)


def test_keeping_everything_changes_nothing_and_the_pieces_make_the_answer(cases: list[Case]) -> None:
    for case in cases:
        everything, few, inside = case.told
        assert (everything.answer, everything.tokens) == (case.dense.answer, case.dense.tokens)
        assert everything.probabilities == pytest.approx(case.dense.probabilities, rel=1e-5)
        assert not case.changed[0]
        assert everything.kept == tuple(range(16))
        assert (len(few.kept or ()), len(inside.kept or ()), case.dense.kept) == (3, 2, None)
        assert case.dense.tokens_in == few.tokens_in == inside.tokens_in == 16
        for one in (case.dense, *case.told):
            assert "".join(one.tokens).replace("\u23ce", "").strip() == one.answer


def told(answer: str, p: float = 1.0) -> Told:
    tokens = tuple(answer.split())
    return Told(
        strategy="s",
        answer=answer,
        tokens=tokens,
        probabilities=(p,) * len(tokens),
        correct=False,
        kept=(0,),
        tokens_in=4,
    )


def test_the_most_changed_come_first_and_ties_keep_their_order() -> None:
    sample = tiny_samples(1)[0]
    calm = Case(sample=sample, dense=told("a"), told=(told("A."), told("a")))  # the same after normalisation
    unsure = Case(sample=sample, dense=told("a"), told=(told("a", 0.5), told("a")))
    one = Case(sample=sample, dense=told("a"), told=(told("b"), told("a")))
    two = Case(sample=sample, dense=told("a"), told=(told("b"), told("c")))
    again = Case(sample=sample, dense=told("a"), told=(told("b"), told("c")))
    assert calm.changed == (False, False)
    assert most_changed([calm, one, two, unsure, again], 9) == [two, again, one, unsure, calm]
    assert most_changed([calm, one, two], 1) == [two]
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        most_changed([calm], 0)


def test_captions_are_compared_word_by_word() -> None:
    dense = ["a", "black", "dog", "on", "a", "beach"]
    assert different(["a", "brown", "dog", "on", "the", "beach"], dense) == [False, True, False, False, True, False]
    assert different(dense, dense) == [False] * 6
    assert different([], dense) == []


def test_a_slide_has_a_card_per_method_with_its_picture(loaded: LoadedModel, cases: list[Case]) -> None:
    slide = case_slide(loaded, cases[0], side=64)
    assert [card.title for card in slide.cards] == ["dense", *(one.strategy for one in cases[0].told)]
    pictures = [card.picture for card in slide.cards]
    assert all(picture is not None and picture.data[:2] == b"\xff\xd8" for picture in pictures)
    assert [word.text for word in slide.cards[1].words] == list(cases[0].dense.tokens)
    assert not any(word.changed for word in slide.cards[1].words)


def test_nothing_to_study_is_said(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="at least one sample and one strategy, got 0 and 1"):
        study_cases(loaded, [], [GreedyRepMax(4)])
