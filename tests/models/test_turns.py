"""Conversations: later turns on a kept cache, or encoded as a whole, against a reference that knows no cache."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tests.models.oracle import ByContent, features_of, tiny
from tokenprune import Choice, MIAlignment, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import FastV, GridPool
from tokenprune.core import strategy as core
from tokenprune.core.places import Positions
from tokenprune.core.signals import signal_named
from tokenprune.models import Record, UnsupportedError
from tokenprune.models.prompt.cache_state import unlock
from tokenprune.testing import reference_logits, tiny_model

STEPS = 3
SETTINGS: dict[str, Any] = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
FIRST = ["look at <0> now", "tell me more about the things in <2> and <5> please"]
LATER = ["and why", "is it larger than <6> there"]


def say(make_inputs: Any, sequences: Tensor, mask: Tensor, words: list[str], images: Tensor) -> dict[str, Tensor]:
    """The next turn as a user writes it: everything so far and new words, left padded; all images, row after row."""
    new = make_inputs(words)
    new_mask = new["attention_mask"].clone()
    new_mask[torch.arange(len(words)), new_mask.argmax(1)] = 0  # no second start token
    ids = torch.cat([sequences, new["input_ids"]], dim=1)
    mask = torch.cat([mask, torch.ones(len(words), sequences.shape[1] - mask.shape[1]), new_mask], dim=1).long()
    width = int(mask.sum(1).max())
    packed = {"input_ids": torch.zeros(len(words), width, dtype=torch.int64)}
    packed["attention_mask"] = torch.zeros_like(packed["input_ids"])
    for row in range(len(words)):
        real = ids[row][mask[row].bool()]
        packed["input_ids"][row, width - len(real) :] = real
        packed["attention_mask"][row, width - len(real) :] = 1
    return {**packed, "pixel_values": images}


def check_turn(
    model: Any,
    inputs: dict[str, Tensor],
    output: Any,
    kept: list[list[Tensor]],
    positions: str,
    *,
    vectors: list[Tensor] | None = None,
) -> None:
    """Every step's logits of every row equal the reference, which is told what is kept of every image."""
    logits = torch.stack(output.logits, dim=1)
    features = features_of(model, inputs) if vectors is None else vectors
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
    start = 0
    for row, indices in enumerate(kept):
        mine = features[start : start + len(indices)]
        start += len(indices)
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        expected = reference_logits(model, ids, mine, indices, positions=positions, steps=STEPS)
        assert (logits[row] - expected.logits).abs().max() <= 1e-5, f"row {row}"
        assert torch.equal(output.sequences[row, length:], expected.tokens)


def kept_of(record: Record, call: int, rows: int) -> list[list[Tensor]]:
    images = record.calls[call].images
    return [[image.indices for image in images if image.prompt == row] for row in range(rows)]


def images_of(make_inputs: Any, *prompts: str) -> Tensor:
    pixels: Tensor = make_inputs(prompts)["pixel_values"]
    return pixels


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_later_turns_on_a_kept_cache(attention: str, positions: Positions, kind: str) -> None:
    """Three turns; rows of different length, different numbers of kept tokens, and a new image in one of them."""
    model, make_inputs = tiny(attention)
    cache = (
        DynamicCache(config=model.config.get_text_config())
        if kind == "dynamic"
        else StaticCache(config=model.config.get_text_config(), max_cache_len=120)
    )
    fed: list[int] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    turns: list[tuple[dict[str, Tensor], Any]] = []
    images = images_of(make_inputs, "<0>", "<2> <5> <6>")
    with prune(model, ByContent(), positions=positions) as record:
        inputs = make_inputs(FIRST)
        for words in (LATER, ["so what then", "no"], None):
            if len(turns) == 2:
                del inputs["pixel_values"]  # nothing new to see
            turns.append((inputs, model.generate(**inputs, past_key_values=cache, **SETTINGS)))
            if words is not None:
                inputs = say(make_inputs, turns[-1][1].sequences, inputs["attention_mask"], words, images)
    handle.remove()
    first, new = kept_of(record, 0, 2), kept_of(record, 1, 2)
    assert [len(row) for row in new] == [0, 1], "only the new image is chosen from"
    whole = [old + more for old, more in zip(first, new, strict=True)]
    for (inputs, output), kept in zip(turns, (first, whole, whole), strict=True):
        pixels = inputs.get("pixel_values", images)
        check_turn(model, {**inputs, "pixel_values": pixels}, output, kept, positions)
    # The last generated token and the new words: old columns are not computed again.
    prefills = [n for n in fed if n > 1]
    calls = record.calls
    assert prefills == [calls[0].columns_kept, 1 + 5 + len(new[1][0]), 1 + 3]
    assert [call.cached for call in calls] == [0, *(call.columns_kept + STEPS - 1 for call in calls[:2])]
    assert calls[2].columns_in == turns[2][0]["input_ids"].shape[1]


def test_what_was_said_may_be_cut_or_changed_behind_the_prompt() -> None:
    """An end token left out, padding behind it, an answer tokenised anew: what differs is fed again."""
    model, make_inputs = tiny()
    for change in ("cut", "changed", "nothing new", "regenerate"):
        inputs = make_inputs(["what is in <0> then"])
        length = inputs["input_ids"].shape[1]
        with prune(model, ByContent(), positions="original") as record:
            output = model.generate(**inputs, **SETTINGS)
            ids = output.sequences.clone()
            if change == "cut":
                ids = torch.cat([ids[:, :-2], torch.tensor([[9, 8]])], dim=1)
            elif change == "changed":
                ids[0, length + 1] = 77
                ids = torch.cat([ids, torch.tensor([[9, 8]])], dim=1)
            elif change == "regenerate":
                ids = ids[:, :length]
            again = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            turn = model.generate(**again, past_key_values=output.past_key_values, **SETTINGS)
        check_turn(model, again, turn, kept_of(record, 0, 1), "original")


def test_the_naive_call_is_wrong_without_the_context_and_refused() -> None:
    """What transformers does with a shorter cache: it feeds old tokens again. The lock on the cache forbids it."""
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    with prune(model, ByContent()) as record:
        output = model.generate(**inputs, **SETTINGS)
        copied = copy.deepcopy(output.past_key_values)
        unlocked = copy.deepcopy(output.past_key_values)
    again = say(make_inputs, output.sequences, inputs["attention_mask"], ["and why"], inputs["pixel_values"])
    words = {name: value for name, value in again.items() if name != "pixel_values"}
    for cache in (output.past_key_values, copied):
        with pytest.raises(UnsupportedError, match="shorter than the conversation"):
            model.generate(**words, past_key_values=cache, **SETTINGS)
    unlock(unlocked)
    wrong = torch.stack(model.generate(**words, past_key_values=unlocked, **SETTINGS).logits, 1)
    with prune(model, ByContent()):  # another context can go on, and so can it on a copy
        right = model.generate(**again, past_key_values=copied, **SETTINGS)
    check_turn(model, again, right, kept_of(record, 0, 1), "compact")
    assert (wrong - torch.stack(right.logits, 1)).abs().max() > 1e-2


def test_return_sequences_are_conversations_of_their_own() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["look at <0> now", "what of <1> here"])
    with prune(model, ByContent()) as record:
        torch.manual_seed(3)
        output = model.generate(**inputs, **{**SETTINGS, "do_sample": True, "num_return_sequences": 2})
        pixels = inputs["pixel_values"].repeat_interleave(2, dim=0)
        mask = inputs["attention_mask"].repeat_interleave(2, dim=0)
        again = say(make_inputs, output.sequences, mask, ["and why"] * 4, pixels)
        turn = model.generate(**again, past_key_values=output.past_key_values, **SETTINGS)
    kept = [row for row in kept_of(record, 0, 2) for _ in range(2)]
    check_turn(model, again, turn, kept, "compact")


def test_merged_tokens_stay_in_the_cache() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    strategy = GridPool(4)
    with prune(model, strategy) as record:
        output = model.generate(**inputs, **SETTINGS)
        again = say(make_inputs, output.sequences, inputs["attention_mask"], ["and why"], inputs["pixel_values"])
        turn = model.generate(**again, past_key_values=output.past_key_values, **SETTINGS)
    (vectors,) = features_of(model, inputs)
    merged = strategy.select(Tokens(vectors, grid=(4, 4)))
    assert merged.features is not None
    mixed = vectors.index_copy(0, merged.indices, merged.features)
    check_turn(model, again, turn, kept_of(record, 0, 1), "compact", vectors=[mixed])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("another image", ValueError, "image 0 of prompt 0 is not the one"),
        ("another prompt", ValueError, "does not continue: it differs from its prompt at token 1"),
        ("new words only", ValueError, "torch.cat"),
        ("two rows", ValueError, "2 prompts continue a cache of 1"),
        ("positions", UnsupportedError, "leave them out"),
        ("policy", UnsupportedError, "filled with positions='compact'"),
        ("decoder", UnsupportedError, "acts inside the language model"),
        ("beams", UnsupportedError, "beam search"),
        ("cropped", UnsupportedError, "when generate handed them over"),
        ("new image without pixels", ValueError, "pixel_values is missing"),
    ],
)
def test_calls_that_do_not_continue_a_cache(change: str, error: type[Exception], message: str) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    settings = {**SETTINGS, "num_beams": 2} if change == "beams" else SETTINGS
    with prune(model, ByContent()):
        output = model.generate(**inputs, **settings)
    cache = output.past_key_values
    again: dict[str, Any] = say(
        make_inputs, output.sequences, inputs["attention_mask"], ["and why"], inputs["pixel_values"]
    )
    strategy: PruningStrategy = FastV(4, layer=1) if change == "decoder" else ByContent()
    if change == "another image":
        again["pixel_values"] = images_of(make_inputs, "<1>")
    elif change == "another prompt":
        again["input_ids"][0, 1] += 1
    elif change == "new words only":
        again = make_inputs(["and why"])
    elif change == "two rows":
        again = {name: value.repeat_interleave(2, 0) for name, value in again.items()}
    elif change == "positions":
        again["position_ids"] = torch.arange(again["input_ids"].shape[1])[None]
    elif change == "cropped":
        cache.crop(-1)
    elif change == "new image without pixels":
        again = say(make_inputs, output.sequences, inputs["attention_mask"], ["see <1> now"], inputs["pixel_values"])
        del again["pixel_values"]
    with (
        prune(model, strategy, positions="original" if change == "policy" else None) as record,
        pytest.raises(error, match=message),
    ):
        model.generate(**again, past_key_values=cache, **SETTINGS)
    assert record.calls == ()


def test_a_cache_of_a_stage_inside_the_decoder_cannot_be_continued() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    with prune(model, FastV(4, layer=1)):
        output = model.generate(**inputs, **SETTINGS)
        again = say(make_inputs, output.sequences, inputs["attention_mask"], ["and why"], inputs["pixel_values"])
        with pytest.raises(UnsupportedError, match="different numbers of tokens"):
            model.generate(**again, past_key_values=output.past_key_values, **SETTINGS)


@pytest.mark.parametrize(("family", "message"), [("paligemma", "every token of its prompt"), ("gemma3", "new images")])
def test_families_that_cannot_continue_a_cache(family: str, message: str) -> None:
    model, make_inputs = tiny_model(family)
    first, more = make_inputs(["look at <0> now"]), make_inputs(["look at <0> now and <4> why"])
    length = first["input_ids"].shape[1]
    with prune(model, ByContent()):
        output = model.generate(**first, max_new_tokens=1, return_dict_in_generate=True)
        ids = torch.cat([output.sequences, more["input_ids"][:, length:]], dim=1)
        again = {**more, "input_ids": ids}
        for name in ("attention_mask", "token_type_ids"):
            again[name] = torch.cat([more[name][:, :length], more[name][:, length - 1 :]], dim=1)
        with pytest.raises(UnsupportedError, match=message):
            model.generate(**again, past_key_values=output.past_key_values, max_new_tokens=1)


def test_a_failed_call_leaves_a_cache_that_is_not_continued() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    cache = DynamicCache()

    def stop(prompt: int, ids: Tensor) -> list[int]:
        raise KeyboardInterrupt

    with prune(model, ByContent()):
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=3, prefix_allowed_tokens_fn=stop)
        with pytest.raises(UnsupportedError, match="ended in an error"):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=3)
    with pytest.raises(UnsupportedError, match="ended in an error"):
        model.generate(torch.full((1, 40), 9), past_key_values=cache, max_new_tokens=3)


def test_text_first_and_an_emptied_cache() -> None:
    """A cache that was filled with text alone is dense: transformers itself continues it. An emptied one is new."""
    model, make_inputs = tiny()
    inputs = make_inputs(["no image here"])
    plain = model.generate(**inputs, **SETTINGS)
    ids = torch.cat([plain.sequences, torch.tensor([[9, 8]])], dim=1)
    expected = model.generate(ids, past_key_values=copy.deepcopy(plain.past_key_values), **SETTINGS)
    with prune(model, ByContent()):
        output = model.generate(**inputs, **SETTINGS)
        model.generate(**make_inputs(["see <0> there"]), max_new_tokens=1)
        turn = model.generate(ids, past_key_values=output.past_key_values, **SETTINGS)
        assert torch.equal(turn.sequences, expected.sequences)
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        first = model.generate(**make_inputs(["see <0> there"]), past_key_values=cache, **SETTINGS)
        cache.reset()
        again = model.generate(**make_inputs(["see <0> there"]), past_key_values=cache, **SETTINGS)
        assert torch.equal(first.sequences, again.sequences)


@method("by_question", register=False)
class ByQuestion(core.Stage):
    """Keeps five tokens that depend on the question."""

    needs = (
        signal_named("text"),
        signal_named("question"),
    )

    def requested(self, tokens: Tokens) -> int | None:
        return 5

    def choose(self, tokens: Tokens) -> Choice:
        assert tokens.text is not None
        assert tokens.question is not None
        order = (tokens.visual @ tokens.text[tokens.question].mean(0)).argsort(descending=True)
        return Choice(order[:5].sort().values)


@pytest.mark.parametrize("turns", ["freeze", "reselect"])
def test_conversations_that_are_encoded_as_a_whole(turns: Any) -> None:
    model, make_inputs = tiny()
    with prune(model, ByQuestion(), turns=turns) as record:
        inputs = make_inputs(FIRST)
        output = model.generate(**inputs, **SETTINGS)
        images = images_of(make_inputs, "<0>", "<2> <5> <6>")
        again = say(make_inputs, output.sequences, inputs["attention_mask"], LATER, images)
        turn = model.generate(**again, **SETTINGS)
        other = make_inputs(["look at <0> never"])  # another conversation about the same image
        model.generate(**other, **SETTINGS)
    check_turn(model, again, turn, kept_of(record, 1, 2), "compact")
    first, second = kept_of(record, 0, 2), kept_of(record, 1, 2)
    same = [torch.equal(a, b) for old, new in zip(first, second, strict=True) for a, b in zip(old, new, strict=False)]
    assert same == [True] * 3 if turns == "freeze" else not all(same)
    with prune(model, ByQuestion()) as alone:
        model.generate(**other, **SETTINGS)
    assert torch.equal(kept_of(record, 2, 1)[0][0], kept_of(alone, 0, 1)[0][0])
    assert [image.frozen for image in record.calls[1].images] == (
        [True, True, True, False] if turns == "freeze" else [False] * 4
    )


def test_an_image_that_was_changed_is_not_frozen() -> None:
    model, make_inputs = tiny()
    with prune(model, MIAlignment(5), turns="freeze") as record:
        model.generate(**make_inputs(["see <0> there"]), max_new_tokens=1)
        model.generate(**make_inputs(["see <1> there too"]), max_new_tokens=1)
        model.generate(**make_inputs(["see <1> there too"]), max_new_tokens=1)
    assert [image.frozen for image in record.images] == [False, False, True]


def test_turn_policies_are_checked() -> None:
    model, _ = tiny()
    with pytest.raises(ValueError, match="turns must be one of 'reselect', 'freeze'"):
        prune(model, ByContent(), turns="thaw")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="turns='freeze' cannot hold"):
        prune(model, FastV(4, layer=1), turns="freeze")
