"""What cannot be pruned correctly is refused early, with what to do instead."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from tests.models.oracle import BATCHES, ByContent, tiny
from tokenprune import Choice, Tokens, prune, prune_inputs
from tokenprune import strategy as method
from tokenprune.core import places
from tokenprune.core import strategy as core
from tokenprune.core.signals import signal_named
from tokenprune.models import UnsupportedError, adapter_for, check_version

ROWS = BATCHES["padded"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assistant_model": tiny("eager")[0]}, "assistant_model=<LlavaFor"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size=4"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=4)}, "prefill_chunk_size=4"),
        ({"custom_generate": lambda *args: None}, "custom_generate=<function>"),
        ({"cache_implementation": "paged"}, "paged"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size=2"),
        ({"inputs_embeds": torch.zeros(3, 4, 32)}, "inputs_embeds"),
        ({"mm_encoder_outputs": {"image": None}}, "mm_encoder_outputs"),
    ],
)
def test_generate_settings(settings: dict[str, Any], message: str) -> None:
    model, make_inputs = tiny()
    with prune(model, ByContent()) as record, pytest.raises(UnsupportedError, match=message):
        model.generate(**make_inputs(ROWS), max_new_tokens=2, **settings)
    assert record.calls == ()


def test_settings_that_the_model_brings_are_seen() -> None:
    model, make_inputs = tiny()
    model.generation_config.prefill_chunk_size = 4
    try:
        with prune(model, ByContent()), pytest.raises(UnsupportedError, match="prefill_chunk_size=4"):
            model.generate(**make_inputs(ROWS), max_new_tokens=2)
    finally:
        model.generation_config.prefill_chunk_size = None


def test_settings_that_are_off_are_fine() -> None:
    model, make_inputs = tiny()
    with prune(model, ByContent()) as record:
        model.generate(**make_inputs(ROWS), max_new_tokens=2, encoder_repetition_penalty=1.0, token_healing=False)
    assert len(record.images) == 3


def test_caches_that_nobody_knows_are_refused() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    dense = model(**inputs, use_cache=True).past_key_values
    with prune(model, ByContent()):
        with pytest.raises(UnsupportedError, match="nobody knows what stands"):
            model.generate(**inputs, past_key_values=dense, max_new_tokens=2)
        cache = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).past_key_values
        with pytest.raises(UnsupportedError, match="past_key_values"):
            model(**make_inputs(["and now"]), past_key_values=cache)
        with pytest.raises(UnsupportedError, match="images and past_key_values"):
            model(**inputs, past_key_values=DynamicCache())


def test_a_manual_step_with_explicit_positions_and_mask_works() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    with prune(model, ByContent(), positions="original"), torch.no_grad():
        expected = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
        prefill = model(**inputs, use_cache=True)
        cache = prefill.past_key_values
        step = model(
            input_ids=prefill.logits[:, -1:].argmax(-1),
            past_key_values=cache,
            attention_mask=torch.ones(1, cache.get_seq_length() + 1, dtype=torch.int64),
            position_ids=torch.tensor([[inputs["input_ids"].shape[1]]]),
        )
    assert (step.logits[:, -1] - expected.logits[1]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel_values": None}, ValueError, "placeholders but pixel_values is missing"),
        ({"pixel_values": torch.zeros(2, 3, 28, 28)}, ValueError, "48 image placeholders but the images have 32"),
        ({"attention_mask": torch.ones(3, 5)}, ValueError, r"attention_mask must be \(prompts, columns\)"),
        ({"attention_mask": torch.ones(3, 1, 9, 9)}, ValueError, "attention_mask must be"),
        ({"attention_mask": {"full_attention": None}}, TypeError, "attention_mask must be a tensor"),
        ({"position_ids": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "position_ids are"),
        ({"input_ids": None}, TypeError, "input_ids must be a tensor"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, ValueError, "input_ids must be integers"),
    ],
)
@pytest.mark.parametrize("way", ["generate", "forward", "pure"])
def test_inputs_that_do_not_fit(change: dict[str, Any], error: type[Exception], message: str, way: str) -> None:
    model, make_inputs = tiny()
    inputs: dict[str, Any] = {**make_inputs(ROWS), **change}
    if way == "pure":
        with pytest.raises(error, match=message):
            prune_inputs(model, ByContent(), **inputs)
        return
    with prune(model, ByContent()), pytest.raises(error, match=message):
        (model.generate if way == "generate" else model)(**inputs)


def test_an_image_that_straddles_two_prompts() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["a <0> b <1> c", "no image at all"])
    ids = inputs["input_ids"]
    ids[0, -2], ids[1, -1] = 7, model.config.image_token_id
    with prune(model, ByContent()), pytest.raises(ValueError, match="image 1 has 16 tokens, but .* begin in prompt 0"):
        model.generate(**inputs)


def test_arguments_per_column_that_nobody_would_cut() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, ByContent()):
        with pytest.raises(UnsupportedError, match="token_type_ids of shape"):
            model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))
        with pytest.raises(UnsupportedError, match="logits_to_keep as a tensor"):
            model(**inputs, logits_to_keep=torch.tensor([3]))
        with pytest.raises(ValueError, match="labels must have one entry per prompt column"):
            model(**inputs, labels=torch.zeros(3, 2, dtype=torch.int64))
        assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
    with pytest.raises(TypeError, match="max_new_tokens is no part of a prompt"):
        prune_inputs(model, ByContent(), **inputs, max_new_tokens=3)  # type: ignore[arg-type]


@method("elsewhere", register=False)
class Elsewhere(core.Stage):
    """Acts in the decoder."""

    def choose(self, tokens: Tokens) -> Choice:
        raise AssertionError

    @property
    def place(self) -> places.InDecoder:
        return places.InDecoder(99)


@method("needs_clip", register=False)
class NeedsClip(core.Stage):
    """Needs what the model does not have."""

    needs = (signal_named("clip_visual"),)

    def choose(self, tokens: Tokens) -> Choice:
        raise AssertionError


def test_strategies_that_do_not_fit_are_refused_before_the_context_opens() -> None:
    model, make_inputs = tiny()
    with pytest.raises(UnsupportedError, match="acts at the 'decoder' site"):
        prune(model, Elsewhere())
    with pytest.raises(UnsupportedError, match="'decoder'"):
        prune(model, ByContent() >> Elsewhere())
    with pytest.raises(UnsupportedError, match=r"needs Tokens\.clip_visual"):
        prune_inputs(model, NeedsClip(), **make_inputs(ROWS))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strategy must be a PruningStrategy or its text, got the class ByContent"):
        prune(model, ByContent)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got int"):
        prune(model, 64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions must be one of 'original', 'compact', got 'preserve'"):
        prune(model, ByContent(), positions="preserve")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no strategy is called"):
        prune(model, "no_such(keep=3)")


def test_models_that_do_not_fit() -> None:
    model, _ = tiny()
    with pytest.raises(TypeError, match="LlavaModel has no `generate`"):
        adapter_for(model.model)
    with pytest.raises(ValueError, match=r"no adapter for the model family 'llama' .*writes encode"):
        adapter_for(model.model.language_model)
    with pytest.raises(TypeError, match="got str"):
        prune("llava-hf/llava-1.5-7b-hf", ByContent())


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.16.2", "6.0.0", "unknown"])
def test_other_releases_of_transformers_are_refused(version: str) -> None:
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.17"):
        check_version(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.24.0.dev0"])
def test_releases_in_the_range_pass(version: str) -> None:
    check_version(version)
