"""The first generated token follows the prompt as it was, also when the prompt ends in an image that was cut short."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import InDecoder, Stage, by_content
from tests.models.family_calls import compiled
from tests.models.family_oracle import Dense, check_family, check_inside, tiny
from tests.models.family_strategies import FAMILIES, SETTINGS, ending_in_images
from tests.models.oracle import BATCHES, ByContent, InPickOrder, KeepAll, check_generate
from tests.models.oracle import tiny as llava
from tests.models.test_turns import check_turn, images_of, kept_of, say
from tokenprune import prune, prune_inputs
from tokenprune import strategy as method
from tokenprune.baselines import GridPool
from tokenprune.core import places
from tokenprune.core.places import Positions
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.models import UnsupportedError, adapter_for, build_prompt, compact, select_tokens
from tokenprune.models.decoder.inject import ready
from tokenprune.testing import reference_logits

ENDS = ["look at <0> now <1>", "<2>", "what is <3>", "and in <5> then <7>"]
BOTH: tuple[Positions, ...] = ("original", "compact")
IN_DECODER = [family for family in FAMILIES if family.id != "gemma3"]
ON_A_CACHE = [family for family in FAMILIES if family.id != "paligemma"]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_after_an_image(family: str, policy: Positions, kind: str) -> None:
    """Against a reference that counts from the dense prompt, without cache and padding."""
    settings: dict[str, Any] = {} if kind == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    for prompts in (ENDS, ENDS[2:3]):
        check_family(family, "sdpa", ending_in_images(family, prompts), ByContent(), policy, **settings)


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", IN_DECODER)
def test_every_step_after_an_image_that_is_cut_inside_the_decoder(family: str, policy: Positions) -> None:
    inputs, cut = ending_in_images(family, ENDS), InDecoder(layer=2)
    stages = [Stage(2, policy, by_content(cut))]
    every: tuple[dict[str, Any], ...] = ({}, {"cache_implementation": "static"})
    for settings in every:
        check_inside(family, "sdpa", inputs, cut, stages, policy, **settings)
    for before in BOTH:  # the positions that enter the layers before the cut
        strategy = _Placed(policy=before) >> cut
        assert strategy.stages[0].place.positions == before
        mixed = [Stage(2, cut.place.positions, by_content(cut))]
        check_inside(family, "sdpa", inputs, strategy, mixed, None, before=ByContent(), policy=before)


@method("placed", register=False)
class _Placed(ByContent):
    """`ByContent` with a policy of its own."""

    policy: Positions = "compact"

    @property
    def place(self) -> places.BeforeDecoder:
        return places.BeforeDecoder(self.policy)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_every_step_after_a_video(family: str) -> None:
    inputs = ending_in_images(family, ["what moves in [0]", "see <1> and [3]"])
    for policy in BOTH:
        check_family(family, "sdpa", inputs, ByContent(), policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_kept_goes_on_as_the_plain_model(family: str) -> None:
    """Bit for bit, as transformers itself counts on from an image."""
    model, inputs = tiny(family)[0], ending_in_images(family, ENDS)
    plain = model.generate(**inputs, **SETTINGS)
    for policy in BOTH:
        with prune(model, KeepAll(), positions=policy):
            same = model.generate(**inputs, **SETTINGS)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_after_an_image(family: str, policy: Positions) -> None:
    """The score of the best beam of every row is the mean of what the reference says of its tokens."""
    model, inputs = tiny(family)[0], ending_in_images(family, ENDS)
    settings = {**SETTINGS, "num_beams": 3, "output_scores": True, "suppress_tokens": _images(model)}
    with prune(model, ByContent(), positions=policy) as record:
        output = model.generate(**inputs, **settings)
    length = inputs["input_ids"].shape[1]
    for row in range(len(ENDS)):
        mine = [image for image in record.images if image.prompt == row]
        dense = Dense(family, inputs, row, [image.tokens_in for image in mine])
        tokens = output.sequences[row, length:]
        expected = reference_logits(
            dense.model,
            dense.ids,
            dense.features,
            [image.indices for image in mine],
            positions=policy,
            steps=len(tokens),
            tokens=tokens,
            places=dense.places(),
            placeholders=dense.placeholders,
            forward=dense.forward(),
        )
        score = expected.logits.log_softmax(1).gather(1, tokens[:, None]).mean()
        assert (output.sequences_scores[row] - score).abs() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_steps_after_an_image(family: str) -> None:
    compiled(family, "sdpa", ending_in_images(family, ENDS))


@pytest.mark.parametrize(("words", "pixels"), [("and why", True), ("and why", False), ("is it larger than <6>", True)])
@pytest.mark.parametrize("policy", BOTH)
def test_a_later_turn_after_an_image(policy: Positions, words: str, pixels: bool) -> None:
    """The answer that is used again and what follows it, after a prompt that ended in an image."""
    model, make_inputs = llava()
    first = [ENDS[0], ENDS[2]]
    inputs = make_inputs(first)
    images = images_of(make_inputs, "<0> <1>", "<3>")
    if "<" in words:
        images = images_of(make_inputs, "<0> <1> <6>", "<3> <6>")
    with prune(model, ByContent(), positions=policy) as record:
        output = model.generate(**inputs, **SETTINGS)
        said = output.sequences.clone()
        said[1, -2] = 9  # of the second answer only the first token is used again
        again = say(make_inputs, said, inputs["attention_mask"], [words, "no " + words], images)
        given = again if pixels else {name: value for name, value in again.items() if name != "pixel_values"}
        turn = model.generate(**given, past_key_values=output.past_key_values, **SETTINGS)
        third = say(make_inputs, turn.sequences, again["attention_mask"], ["so", "then what"], images)
        given = third if pixels else {name: value for name, value in third.items() if name != "pixel_values"}
        last = model.generate(**given, past_key_values=turn.past_key_values, **SETTINGS)
    old, new = kept_of(record, 0, 2), kept_of(record, 1, 2)
    kept = [a + b for a, b in zip(old, new, strict=True)]
    check_turn(model, inputs, output, old, policy)
    check_turn(model, again, turn, kept, policy)
    check_turn(model, third, last, kept, policy)


@pytest.mark.parametrize("policy", BOTH)
def test_an_answer_that_is_dropped_whole(policy: Positions) -> None:
    """Nothing of the answer is used again: what is new comes right after the image whose last tokens are missing."""
    model, make_inputs = llava()
    inputs = make_inputs([ENDS[2]])
    with prune(model, ByContent(), positions=policy) as record:
        output = model.generate(**inputs, **SETTINGS)
        said = output.sequences.clone()
        said[:, inputs["input_ids"].shape[1]] += 1
        again = say(make_inputs, said, inputs["attention_mask"], ["and why"], inputs["pixel_values"])
        given = {name: value for name, value in again.items() if name != "pixel_values"}
        turn = model.generate(**given, past_key_values=output.past_key_values, **SETTINGS)
    check_turn(model, again, turn, kept_of(record, 0, 1), policy)


@pytest.mark.parametrize("policy", BOTH)
def test_the_same_prompt_once_more_whose_last_token_follows_an_image(policy: Positions) -> None:
    model, make_inputs = llava()
    inputs = make_inputs([ENDS[2] + " here"])
    words = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with prune(model, ByContent(), positions=policy) as record:
        output = model.generate(**inputs, **SETTINGS)
        turn = model.generate(**words, past_key_values=output.past_key_values, **SETTINGS)
    check_turn(model, inputs, turn, kept_of(record, 0, 1), policy)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("family", ON_A_CACHE)
def test_a_second_turn_with_everything_kept_is_that_of_the_plain_model(family: str, ends: bool) -> None:
    """Bit for bit, as transformers continues its own cache."""
    model, make_inputs = tiny(family)
    prompt = "what is <2> <0>"
    inputs = ending_in_images(family, [prompt]) if ends else make_inputs([prompt + " now"])
    settings = {**SETTINGS, "suppress_tokens": _images(model)}
    plain = model.generate(**inputs, **settings)
    again = _more(inputs, plain.sequences)
    expected = model.generate(**again, **settings, past_key_values=copy.deepcopy(plain.past_key_values))
    for policy in BOTH:
        with prune(model, KeepAll(), positions=policy):
            first = model.generate(**inputs, **settings)
            second = model.generate(**again, **settings, past_key_values=first.past_key_values)
        assert all(torch.equal(a, b) for a, b in zip(expected.logits, second.logits, strict=True))


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", ON_A_CACHE)
def test_a_second_turn_on_the_kept_cache_is_that_of_the_whole_conversation(family: str, policy: Positions) -> None:
    """With and without the pixels of the first turn; the positions of an earlier image are not counted anew."""
    model, make_inputs = tiny(family)
    adapter = adapter_for(model)
    inputs = make_inputs(["what is <2> and <0> now"])
    settings = {**SETTINGS, "suppress_tokens": _images(model)}
    with prune(model, ByContent(), positions=policy, turns="freeze"):
        first = model.generate(**inputs, **settings)
        words = _more(inputs, first.sequences)
        whole = {**{name: inputs[name] for name in adapter.modality_keys if name in inputs}, **words}
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = _longer(inputs["mm_token_type_ids"], words["input_ids"], 0)
        anew = torch.stack(model.generate(**whole, **settings).logits)
        for given in (words, whole):
            cache = copy.deepcopy(first.past_key_values)
            kept = torch.stack(model.generate(**given, **settings, past_key_values=cache).logits)
            assert (kept - anew).abs().max() <= 2e-5


def _more(inputs: dict[str, Any], sequences: Tensor) -> dict[str, Tensor]:
    """The conversation so far and two more words, without pixels."""
    ids = torch.cat([sequences, torch.tensor([[20, 30]]).expand(len(sequences), -1)], dim=1)
    words = {"input_ids": ids, "attention_mask": _longer(inputs["attention_mask"], ids, 1)}
    if "token_type_ids" in inputs:
        words["token_type_ids"] = _longer(inputs["token_type_ids"], ids, 0)
    return words


def _longer(values: Tensor, ids: Tensor, filler: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, ids.shape[1] - values.shape[1]), value=filler)


def _images(model: Any) -> list[int]:
    return sorted(adapter_for(model).image_token_ids)


@pytest.mark.parametrize("policy", BOTH)
def test_pick_order_and_merged_tokens_at_the_end(policy: Positions) -> None:
    model, make_inputs = llava()
    for strategy in (InPickOrder(), GridPool(4)):
        check_generate(model, make_inputs(ENDS), strategy, policy)
        check_generate(model, make_inputs(BATCHES["two images"]), strategy, policy)


def test_generate_without_a_context() -> None:
    """What no argument can say is refused, and right inside `ready`."""
    model, make_inputs = llava()
    inputs: dict[str, Any] = make_inputs(ENDS)
    adapter = adapter_for(model)
    with prune(model, ByContent(), positions="original"), torch.no_grad():
        expected = model.generate(**inputs, **SETTINGS)
        forward = model(**inputs, labels=inputs["input_ids"]).logits[:, -1]
    with torch.no_grad():
        prompt = build_prompt(adapter, inputs, adapter.encode(inputs, {IMAGE_KEY}))
        pruned = compact(prompt, select_tokens(ByContent(), prompt)[0], positions="original")
        with pytest.raises(UnsupportedError, match=r"inside `with ready\(adapter, pruned\):`"):
            pruned.generate_kwargs()
        with ready(adapter, pruned):
            found = model.generate(**pruned.generate_kwargs(placed=True), **SETTINGS)
        assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
        with pytest.raises(RuntimeError, match="last token did not reach the language model"), ready(adapter, pruned):
            pass
        with pytest.raises(UnsupportedError, match="where the next token goes; end the prompt in text"):
            prune_inputs(model, ByContent(), positions="original", **inputs)
        forwards: tuple[dict[str, Any], ...] = ({"generate": False}, {"labels": inputs["input_ids"]})
        for options in forwards:
            pure = prune_inputs(model, ByContent(), positions="original", **options, **inputs)
            assert (model(**pure).logits[:, -1] - forward).abs().max() <= 1e-5
        words: dict[str, Any] = make_inputs(["what is <3> then"])
        assert (
            prune_inputs(model, ByContent(), positions="original", generate=True, **words)["position_ids"].max() == 19
        )
        # With one axis and without gaps the next token is one further.
        assert "labels" not in prune_inputs(model, ByContent(), positions="compact", **inputs)
        assert not compact(prompt, select_tokens(KeepAll(), prompt)[0], shortcut=False).jumps()
