"""Answers with probabilities, against plain forwards of the same model and against the runner."""

import pytest
import torch

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples
from tokenprune import GreedyRepMax, prune
from tokenprune.core.text import parse
from tokenprune.evaluate.answers import answer, ask_again, ask_batches, signals_of
from tokenprune.evaluate.batches import processed
from tokenprune.models import select_tokens


def test_confidence_is_the_product_over_the_answer_and_first_its_first_distribution() -> None:
    loaded, samples = tiny_loaded(), tiny_samples(3)
    (batch,) = ask_batches(loaded, samples, batch_size=4)
    for sample, found in zip(samples, answer(loaded, batch, max_new_tokens=3), strict=True):
        inputs = processed(loaded.processor, [sample])  # alone, without padding, and without a cache
        ids, likely = inputs["input_ids"], 0.0
        words = []
        for step in range(3):
            with torch.no_grad():
                logits = loaded.model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
                ).logits[0, -1]
            log_probs = torch.log_softmax(logits, -1)
            if step == 0:
                torch.testing.assert_close(found.first, log_probs, rtol=1e-4, atol=1e-4)
            likely += float(log_probs.max())
            words.append(int(log_probs.argmax()))
            ids = torch.cat([ids, log_probs.argmax()[None, None]], dim=1)
        assert found.confidence == pytest.approx(float(torch.tensor(likely).exp()), rel=1e-3)
        assert found.text == loaded.processor.batch_decode([words], skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("text", ["greedy_repmax(keep=4)", "mi_alignment(keep=3)", "fastv(keep=4, layer=1)"])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_strategy_gives_the_answers_of_the_context(text: str, positions: str) -> None:
    loaded, samples, strategy = tiny_loaded(), tiny_samples(4), parse(text)
    (batch,) = ask_batches(loaded, samples, want=signals_of([strategy]))
    found = answer(loaded, batch, strategy, positions=positions, max_new_tokens=3)  # type: ignore[arg-type]
    inputs = processed(loaded.processor, samples)
    with prune(loaded.model, strategy, positions=positions):  # type: ignore[arg-type]
        out = loaded.model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    assert [one.text for one in found] == [
        text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)
    ]
    wanted = torch.log_softmax(out.logits[0], -1)
    torch.testing.assert_close(torch.stack([one.first for one in found]), wanted, rtol=1e-4, atol=1e-5)


def test_given_selections_are_what_enters() -> None:
    loaded, samples, strategy = tiny_loaded(), tiny_samples(4), GreedyRepMax(3)
    (batch,) = ask_batches(loaded, samples)
    chosen = select_tokens(strategy, batch.prompt)[0]
    own = answer(loaded, batch, strategy, max_new_tokens=2)
    given = answer(loaded, batch, selections=chosen, max_new_tokens=2)
    other = answer(loaded, batch, selections=chosen[::-1], max_new_tokens=2)
    assert all(torch.equal(a.first, b.first) for a, b in zip(own, given, strict=True))
    assert not all(torch.equal(a.first, b.first) for a, b in zip(own, other, strict=True))
    with pytest.raises(ValueError, match="not both"):
        answer(loaded, batch, strategy, selections=chosen)


def test_another_question_about_the_same_pictures() -> None:
    loaded, samples = tiny_loaded(), tiny_samples(4)
    (batch,) = ask_batches(loaded, samples)
    again = ask_again(loaded, batch, [("w90 w91", ("w7",))] * 4)
    (fresh,) = ask_batches(loaded, again.samples)
    for a, b in zip(answer(loaded, again), answer(loaded, fresh), strict=True):
        torch.testing.assert_close(a.first, b.first)
    assert again.units == batch.units
    assert len(set(batch.units)) == 2  # two questions per picture


def test_empty_input_is_refused() -> None:
    with pytest.raises(ValueError, match="samples is empty"):
        next(ask_batches(tiny_loaded(), []))
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        next(ask_batches(tiny_loaded(), tiny_samples(1), batch_size=0))
