"""Pruning inside the decoder: every decoding step's logits against a language model written out by hand."""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.models.decoder_oracle import Attended, InDecoder, Stage, by_content, check_decoder, most_attended
from tests.models.oracle import BATCHES, ByContent
from tokenprune import GreedyRepMax, prune
from tokenprune.baselines import FastV
from tokenprune.core.places import Positions
from tokenprune.testing.tiny.models import MakeInputs, tiny_llava

LAYERS = 4


@lru_cache
def tiny(attention: str = "sdpa") -> tuple[Any, MakeInputs]:
    """One model with four decoder layers for all tests: a leak from one to another is a failure, too."""
    return tiny_llava(attn_implementation=attention, layers=LAYERS)


def number(key: int, left: int) -> int:
    """How many tokens `Attended` keeps."""
    return 3 + key % 9


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_step_equals_the_reference(attention: str, positions: Positions, batch: str, cache: str) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES[batch])
    stages = [Stage(2, positions, most_attended(number))]
    record = check_decoder(model, inputs, Attended(), stages, positions=positions, cache_implementation=cache)
    kept = [image.tokens_kept for image in record.images[: len(inputs["pixel_values"])]]
    assert len(kept) == 1 or any(a != b for a, b in pairwise(kept)), "the batch must keep different numbers"


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_stages_behind_one_before_the_language_model(attention: str, positions: Positions, batch: str) -> None:
    model, make_inputs = tiny(attention)
    first, second = InDecoder(seed=5, layer=1), Attended(seed=0, layer=3)
    strategy = GreedyRepMax(0.75) >> first >> second
    stages = [Stage(1, positions, by_content(first)), Stage(3, positions, most_attended(number))]
    inputs = make_inputs(BATCHES[batch])
    before = GreedyRepMax(0.75)
    record = check_decoder(model, inputs, strategy, stages, positions=positions, before=before, policy=positions)
    for image in record.images:
        assert [s.tokens_in for s in image.stages] == [16, 12, image.layer_tokens[1]]
        assert image.layer_tokens[0] == 12
        assert image.layer_tokens[3] == image.tokens_kept == image.stages[-1].tokens_out


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("batch", ["padded", "one row", "two images"])
def test_fastv_at_every_layer(layer: int, batch: str) -> None:
    model, make_inputs = tiny()
    stages = [Stage(layer, "original", most_attended(lambda key, left: 5))]
    record = check_decoder(model, make_inputs(BATCHES[batch]), FastV(5, layer=layer), stages, positions=None)
    image = record.images[0]
    assert (image.site, image.layer, image.positions, image.requested) == ("decoder", layer, "original", 5)
    assert image.layer_tokens == (16,) * layer + (5,) * (LAYERS - layer)
    assert image.layer_average == (16 * layer + 5 * (LAYERS - layer)) / LAYERS


def test_each_stage_has_the_policy_of_its_authors() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    stages = [Stage(2, "original", most_attended(lambda key, left: 4))]
    strategy = ByContent() >> FastV(4)
    check_decoder(model, inputs, strategy, stages, positions=None, before=ByContent(), policy="compact")
    mixed = InDecoder(seed=5, layer=1) >> FastV(4, layer=2)  # compact, then original
    stages = [Stage(1, "compact", by_content(InDecoder(seed=5, layer=1))), *stages]
    check_decoder(model, inputs, mixed, stages, positions=None)


def test_stages_at_one_layer_run_one_after_another() -> None:
    model, make_inputs = tiny()
    stages = [
        Stage(2, "original", most_attended(lambda key, left: 9)),
        Stage(2, "original", by_content(InDecoder(seed=3))),
    ]
    strategy = FastV(9) >> InDecoder(seed=3)
    check_decoder(model, make_inputs(BATCHES["padded"]), strategy, stages, positions="original")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch", ["padded", "equal length", "two images"])
def test_beams_of_a_batch_equal_single_rows(batch: str, cache: str) -> None:
    model, make_inputs = tiny()
    strategy = InDecoder(seed=5, layer=1) >> Attended(layer=3)
    settings = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    inputs = make_inputs(BATCHES[batch])
    with prune(model, strategy) as together:
        many = model.generate(**inputs, **settings, cache_implementation=cache)
    kept = []
    for row, prompt in enumerate(BATCHES[batch]):
        if "<" not in prompt:
            continue
        with prune(model, strategy) as alone:
            single = model.generate(**make_inputs([prompt]), **settings)
        kept.extend(alone.images)
        assert torch.equal(many[2 * row : 2 * row + 2, -5:], single[:, -5:])
    for a, b in zip(together.images, kept, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert a.layer_tokens == b.layer_tokens


def test_right_padding_gives_what_left_padding_gives() -> None:
    model, make_inputs = tiny()
    stages = [Stage(2, "compact", most_attended(number))]
    for side in ("left", "right"):
        inputs = make_inputs(BATCHES["padded"], padding_side=side)
        check_decoder(model, inputs, Attended(), stages, positions="compact")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_keeping_everything_is_the_plain_model_to_the_last_bit(attention: str, positions: Positions) -> None:
    model, make_inputs = tiny(attention)
    for batch in BATCHES.values():
        inputs = make_inputs(batch)
        settings = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
        plain, plain_forward = model.generate(**inputs, **settings), model(**inputs).logits
        with prune(model, FastV(1.0), positions=positions):
            pruned, forward = model.generate(**inputs, **settings), model(**inputs).logits
        assert torch.equal(torch.stack(plain.logits), torch.stack(pruned.logits))
        assert torch.equal(plain.sequences, pruned.sequences)
        assert torch.equal(plain_forward, forward)


def test_sampling_shares_one_choice_among_the_sequences_of_a_prompt() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    with prune(model, Attended()) as record:
        torch.manual_seed(0)
        sequences = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=4)
    assert sequences.shape[0] == 12
    assert len(record.images) == 3


def test_half_precision_runs() -> None:
    model, make_inputs = tiny()
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    with prune(half, "greedy_repmax(keep=0.5) >> fastv(keep=4)") as record:
        half.generate(**make_inputs(BATCHES["padded"]), max_new_tokens=3)
    assert [image.layer_tokens for image in record.images] == [(8, 8, 4, 4)] * 3
