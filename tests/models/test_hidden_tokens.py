"""An attention_mask that hides visual tokens is refused, by every way of calling and before the vision tower runs."""

from typing import Any

import pytest
import torch

from tests.models.family_oracle import tiny
from tests.models.family_strategies import SETTINGS
from tests.models.oracle import ByContent, KeepAll, traces
from tests.models.oracle import tiny as llava
from tests.models.test_turns import say
from tokenprune import prune, prune_inputs
from tokenprune.baselines import FastV
from tokenprune.models import UnsupportedError, adapter_for, build_prompt
from tokenprune.models.prompt.dense import is_placeholder
from tokenprune.testing import tiny_families

PROMPTS = ["only words", "look at <1> and <2> now please", "see <0>"]


def hide(family: str, inputs: dict[str, Any], row: int, count: int) -> dict[str, Any]:
    """The same with the mask 0 on the last visual tokens of a row."""
    mask = inputs["attention_mask"].clone()
    visual = is_placeholder(inputs["input_ids"], adapter_for(tiny(family)[0]))[row].nonzero().flatten()
    mask[row, visual[-count:]] = 0
    return {**inputs, "attention_mask": mask}


@pytest.mark.parametrize("family", tiny_families())
def test_hidden_visual_tokens_are_refused(family: str) -> None:
    model, make_inputs = tiny(family)
    whole, before = make_inputs(PROMPTS), traces(model)
    ids = whole["input_ids"]
    total = int(is_placeholder(ids, adapter_for(model))[1].sum())
    tower: list[int] = []
    handle = adapter_for(model).vision_tower.register_forward_pre_hook(lambda *_: tower.append(1))
    strategies = ["greedy_repmax(keep=1.0)", "random(keep=4)"]
    if "decoder" in adapter_for(model).sites:
        strategies.append("fastv(keep=4, layer=2)")
    for count in (1, total):  # part of an image, all images of a prompt
        inputs = hide(family, whole, 1, count)
        message = rf"attention_mask hides {count} of the {total} visual tokens of prompt 1; .* \(1 in attention_mask\)"
        for strategy in strategies:
            with prune(model, strategy) as record:
                with pytest.raises(UnsupportedError, match=message):
                    model.generate(**inputs, max_new_tokens=1)
                with pytest.raises(UnsupportedError, match=message):
                    model(**inputs)
            assert record.calls == ()
        with pytest.raises(UnsupportedError, match=message):
            prune_inputs(model, "random(keep=4)", **inputs)
    handle.remove()
    assert not tower, "no work was lost"
    assert traces(model) == before


def test_a_prompt_built_by_hand() -> None:
    model, make_inputs = llava()
    inputs = hide("llava", make_inputs(PROMPTS), 2, 3)
    adapter = adapter_for(model)
    with torch.no_grad(), pytest.raises(UnsupportedError, match="hides 3 of the 16 visual tokens of prompt 2"):
        build_prompt(adapter, inputs, adapter.encode(inputs))


def test_hidden_by_a_padding_id_that_is_the_placeholder() -> None:
    """transformers takes it for padding when there is no mask, and would hide every image."""
    model, make_inputs = llava()
    inputs = {name: value for name, value in make_inputs(PROMPTS[2:]).items() if name != "attention_mask"}
    with prune(model, ByContent()), pytest.raises(UnsupportedError, match="without attention_mask, columns with pad_"):
        model.generate(**inputs, pad_token_id=model.config.image_token_id, max_new_tokens=1)


@pytest.mark.parametrize("later", [False, True])
def test_a_later_turn_that_hides_what_is_in_the_cache(later: bool) -> None:
    model, make_inputs = llava()
    inputs = make_inputs(PROMPTS[2:])
    with prune(model, ByContent()):
        output = model.generate(**inputs, **SETTINGS)
        again = say(make_inputs, output.sequences, inputs["attention_mask"], ["and why"], inputs["pixel_values"])
        again = hide("llava", again, 0, 2)
        if later:
            del again["pixel_values"]
        with pytest.raises(UnsupportedError, match="hides 2 of the 16 visual tokens of prompt 0"):
            model.generate(**again, past_key_values=output.past_key_values, **SETTINGS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_hidden_words_stay_hidden(side: str) -> None:
    """Words that the mask hides are padding, wherever they are: the answer is that of the prompt without them."""
    model, make_inputs = llava()
    full = ["look at <1> and see it", "what <0> there is now"]
    inputs = make_inputs(full, padding_side=side)
    for row, column in ((0, 2), (1, 1)):
        place = int(inputs["attention_mask"][row].argmax()) + column
        inputs["attention_mask"][row, place] = 0
    short = make_inputs(["look <1> and see it", "<0> there is now"], padding_side=side)
    for policy in ("original", "compact"):
        for strategy in (ByContent(), KeepAll(), FastV(1.0, layer=1)):
            with prune(model, strategy, positions=policy) as record:
                found = model.generate(**inputs, **SETTINGS)
                expected = model.generate(**short, **SETTINGS)
            half = len(record.images) // 2
            for one, other in zip(record.images[:half], record.images[half:], strict=True):
                assert torch.equal(one.indices, other.indices)
            assert (torch.stack(found.logits) - torch.stack(expected.logits)).abs().max() <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_nothing_but_padding(side: str) -> None:
    model, make_inputs = llava()
    inputs, one = make_inputs(["see <0> now", "a few words"], padding_side=side), make_inputs(["see <0> now"])
    inputs["attention_mask"][1] = 0
    for policy in ("original", "compact"):
        with prune(model, ByContent(), positions=policy):
            found = torch.stack(model.generate(**inputs, **SETTINGS).logits, 1)
            expected = torch.stack(model.generate(**one, **SETTINGS).logits, 1)
        assert (found[0] - expected[0]).abs().max() <= 1e-5
