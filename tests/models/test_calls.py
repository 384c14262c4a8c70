"""Ways of calling generate: beams, sampling, lengths, streamers, and the caller's own processors and criteria."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tests.models.oracle import BATCHES, ByContent, KeepAll, reference_rows, tiny
from tokenprune import prune, prune_inputs

ROWS = BATCHES["padded"]
STRATEGY = ByContent()


def single_rows(model: Any, make_inputs: Any, prompts: list[str], **settings: Any) -> list[Any]:
    with prune(model, STRATEGY):
        return [model.generate(**make_inputs([prompt]), **settings) for prompt in prompts]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_beams_of_a_batch_equal_single_rows(attention: str) -> None:
    model, make_inputs = tiny(attention)
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGY) as record:
        batch = model.generate(**inputs, **settings)
    assert len(record.images) == 3, "one selection per image, whatever the number of beams"
    assert batch.sequences.shape[0] == 6
    for i, single in enumerate(single_rows(model, make_inputs, ROWS, **settings)):
        assert torch.equal(batch.sequences[2 * i : 2 * i + 2, -5:], single.sequences[:, -5:])
        torch.testing.assert_close(
            batch.sequences_scores[2 * i : 2 * i + 2], single.sequences_scores, atol=1e-5, rtol=0
        )
        assert torch.equal(batch.sequences[2 * i, : inputs["input_ids"].shape[1]], inputs["input_ids"][i])


def test_return_sequences_share_a_selection_and_their_logits_hold() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    torch.manual_seed(0)
    with prune(model, STRATEGY, positions="original") as record:
        output = model.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=2,
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(output.logits, dim=1)
    for copy in range(2):
        drawn = output.sequences[copy::2, -4:]
        for row, reference in enumerate(reference_rows(model, inputs, record, "original", steps=4, tokens=drawn)):
            assert (logits[2 * row + copy] - reference.logits).abs().max() <= 1e-5


def test_sampling_with_a_seed_at_keep_all_equals_the_plain_model() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    settings: dict[str, Any] = {"do_sample": True, "top_k": 20, "temperature": 1.3, "max_new_tokens": 8}
    torch.manual_seed(11)
    plain = model.generate(**inputs, **settings)
    torch.manual_seed(11)
    with prune(model, KeepAll()):
        assert torch.equal(model.generate(**inputs, **settings), plain)


@pytest.mark.parametrize("way", ["keyword", "config", "both"])
def test_lengths_count_the_callers_prompt(way: str) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    length = inputs["input_ids"].shape[1]
    settings: dict[str, Any] = {"max_length": length + 5}
    if way != "keyword":
        config = GenerationConfig(max_length=length + 5, min_length=length + 2, pad_token_id=0)
        settings = {"generation_config": config} | ({"max_new_tokens": 3} if way == "both" else {})
    with prune(model, STRATEGY):
        output = model.generate(**inputs, do_sample=False, **settings)
    assert output.shape[1] == length + (3 if way == "both" else 5)
    if way != "keyword":
        assert (config.max_length, config.max_new_tokens) == (length + 5, None), "the caller's config is left alone"


def test_min_length_counts_the_callers_prompt() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    length = inputs["input_ids"].shape[1]
    with prune(model, STRATEGY):
        free = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        end = int(free[0, length])  # the first new token ends the sequence, unless a least length forbids it
        settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end}
        assert model.generate(**inputs, **settings).shape[1] == length + 1
        assert model.generate(**inputs, min_length=length + 3, **settings).shape[1] >= length + 3
        assert model.generate(**inputs, min_length=length, **settings).shape[1] == length + 1


def test_a_length_without_room_is_an_error() -> None:
    model, make_inputs = tiny()
    with prune(model, STRATEGY), pytest.raises(ValueError, match="max_length=5 leaves no room"):
        model.generate(**make_inputs(ROWS), max_length=5)


def test_repetition_penalty_does_not_see_padding_that_pruning_made() -> None:
    model, make_inputs = tiny()
    prompts = BATCHES["equal length"]
    settings: dict[str, Any] = {"repetition_penalty": 1.8, "max_new_tokens": 5, "do_sample": False}
    with prune(model, STRATEGY) as record:
        batch = model.generate(**make_inputs(prompts), **settings)
    assert len({image.tokens_kept for image in record.images}) > 1
    for row, single in zip(batch, single_rows(model, make_inputs, prompts, **settings), strict=True):
        assert torch.equal(row, single[0])


class Note:
    """Remembers the ids that it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class NoteProcessor(LogitsProcessor, Note):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids)
        return scores


class NoteCriterion(StoppingCriteria, Note):
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.seen.append(input_ids)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class NoteStreamer(Note):
    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        self.seen.append(torch.tensor([-1]))


def test_the_callers_own_parts_see_the_whole_prompt() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    length = inputs["input_ids"].shape[1]
    processor, criterion, streamer = NoteProcessor(), NoteCriterion(), NoteStreamer()
    allowed: list[Tensor] = []

    def allow(prompt: int, ids: Tensor) -> list[int]:
        allowed.append(ids)
        return list(range(5, 100))

    with prune(model, STRATEGY):
        output = model.generate(
            **inputs,
            max_new_tokens=9,
            do_sample=False,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([criterion, MaxLengthCriteria(length + 3)]),
            streamer=streamer,
            prefix_allowed_tokens_fn=allow,
        )
    assert output.shape == (1, length + 3), "a criterion on the length counts the caller's prompt"
    for i in range(3):
        assert torch.equal(processor.seen[i], output[:, : length + i])
        assert torch.equal(criterion.seen[i], output[:, : length + i + 1])
        assert torch.equal(allowed[i], output[0, : length + i])
    assert torch.equal(streamer.seen[0], inputs["input_ids"])
    assert torch.equal(torch.cat([part.flatten() for part in streamer.seen[1:-1]]), output[0, length:])
    assert streamer.seen[-1].tolist() == [-1]


def test_a_static_cache_has_no_slot_for_dropped_tokens() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    vars(model).pop("_previous_max_cache_length", None)
    with prune(model, STRATEGY) as record:
        output = model.generate(
            **inputs, max_new_tokens=4, cache_implementation="static", return_dict_in_generate=True, do_sample=False
        )
    slots: Any = output.past_key_values.layers[0]
    assert slots.max_cache_len == record.calls[0].columns_kept + 4 - 1


def test_an_own_empty_cache_is_used() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with prune(model, STRATEGY):
        own = model.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache)
        assert torch.equal(own, model.generate(**inputs, max_new_tokens=4, do_sample=False))


def test_arguments_by_position_and_as_inputs() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    ids = inputs.pop("input_ids")
    with prune(model, STRATEGY) as record:
        by_name = model.generate(input_ids=ids, **inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(ids, **inputs, max_new_tokens=3, do_sample=False), by_name)
        assert torch.equal(model.generate(inputs=ids, **inputs, max_new_tokens=3, do_sample=False), by_name)
        by_place = model(ids, inputs["pixel_values"], inputs["attention_mask"]).logits
        assert torch.equal(by_place, model(input_ids=ids, **inputs).logits)
    assert [len(call.images) for call in record.calls] == [3] * 5


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_pure_function_gives_what_the_context_gives(positions: Any) -> None:
    model, make_inputs = tiny()
    inputs: dict[str, Any] = dict(make_inputs(BATCHES["two images"]))
    with prune(model, STRATEGY, positions=positions):
        inside = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    pruned = prune_inputs(model, STRATEGY, positions=positions, **inputs)
    assert set(pruned) == {"inputs_embeds", "attention_mask", "position_ids"}
    assert torch.equal(model.generate(**pruned, max_new_tokens=4, do_sample=False), inside[:, -4:])


def test_decode_steps_compile_without_a_graph_break() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGY):
        plain = model.generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation="static")
        call = model.__call__
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        steps = 0

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            ids = kwargs.get("input_ids")
            steps += 1
            return compiled(*args, **kwargs) if ids is not None and ids.shape[1] == 1 else call(*args, **kwargs)

        vars(model)["get_compiled_call"] = lambda config: step
        vars(model)["_valid_auto_compile_criteria"] = lambda *args: True
        try:
            again = model.generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation="static")
        finally:
            del vars(model)["get_compiled_call"], vars(model)["_valid_auto_compile_criteria"]
    assert steps >= 3
    assert torch.equal(plain, again)


@pytest.mark.parametrize(
    "settings", [{"guidance_scale": 2.0}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5], [9, 7]]}]
)
def test_other_settings_hold(settings: dict[str, Any]) -> None:
    model, make_inputs = tiny()
    settings = {**settings, "max_new_tokens": 6, "do_sample": False}
    prompts = BATCHES["equal length"]
    inputs = make_inputs(prompts)
    plain = model.generate(**inputs, **settings)
    with prune(model, KeepAll()):
        assert torch.equal(model.generate(**inputs, **settings), plain)
    with prune(model, STRATEGY):
        batch = model.generate(**inputs, **settings)
    for row, single in zip(batch, single_rows(model, make_inputs, prompts, **settings), strict=True):
        assert torch.equal(row, single[0])
