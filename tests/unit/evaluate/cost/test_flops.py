"""Formulas against torch's own counter, with grouped queries, padding, pruning before and inside the decoder."""

from typing import Any

import pytest
import torch

from tests.models.decoder_oracle import InDecoder
from tests.models.oracle import BATCHES, ByContent, KeepAll
from tokenprune import GreedyRepMax, PruningStrategy, prune
from tokenprune.baselines import FastV
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.evaluate.cost import (
    DecoderShape,
    TowerShape,
    counted_flops,
    decode_flops,
    disagreement,
    layer_lengths,
    prefill_flops,
)
from tokenprune.evaluate.cost.counted import TOLERANCE
from tokenprune.evaluate.cost.flops import tower_flops
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_llava

STRATEGIES = [None, KeepAll(), ByContent(), GreedyRepMax(5), InDecoder(), ByContent() >> InDecoder(layer=3)]


def shapes(model: Any) -> tuple[DecoderShape, TowerShape]:
    return DecoderShape.of(model.config), TowerShape.of(model.config)


def call(model: Any, inputs: Any, new: int) -> Any:
    return model.generate(**inputs, max_new_tokens=new, do_sample=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", ["padded", "two images"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_formula_and_counter_agree(strategy: PruningStrategy | None, batch: str, attention: str) -> None:
    model, make_inputs = tiny_llava(layers=4, attn_implementation=attention)
    inputs = make_inputs(BATCHES[batch])
    decoder, tower = shapes(model)
    assert decoder.kv_heads < decoder.heads
    rows, length = inputs["input_ids"].shape
    if strategy is None:
        counted, lengths = counted_flops(lambda: call(model, inputs, 1)), (length,) * decoder.layers
    else:
        with prune(model, strategy) as record:
            counted = counted_flops(lambda: call(model, inputs, 1))
        lengths = layer_lengths(record.calls[0], decoder.layers)
        assert sum(lengths) < length * decoder.layers or isinstance(strategy, KeepAll)
    pictures = inputs["pixel_values"].shape[0]
    formula = prefill_flops(decoder, lengths, rows=rows, tower=tower, pictures=pictures, causal="full")
    # Choosing by distance has a matrix product of its own, a few percent of a model as small as this.
    assert disagreement(formula.layers + formula.attention, counted.of("language_model")) <= TOLERANCE
    assert disagreement(formula.tower, _of(counted.modules, "vision_tower", "CLIPVisionModel")) <= TOLERANCE
    assert (
        disagreement(formula.projector, _of(counted.modules, "multi_modal_projector", "LlavaMultiModalProjector"))
        <= TOLERANCE
    )
    assert disagreement(formula.head, counted.of("lm_head")) <= TOLERANCE
    if strategy is None or not isinstance(strategy, GreedyRepMax):
        assert disagreement(formula.total, counted.total) <= TOLERANCE


def _of(modules: dict[str, int], attribute: str, cls: str) -> int:
    """A part called from inside the model, or by its adapter; the tower's name there is that of its class."""
    found = [count for name, count in modules.items() if name == cls or name.split(".")[-1] == attribute]
    return max(found)


def test_the_attention_that_fastv_reads_is_all_that_it_adds() -> None:
    model, make_inputs = tiny_llava(layers=4)
    inputs = make_inputs(BATCHES["two images"])
    decoder, tower = shapes(model)
    with prune(model, FastV(5, layer=2)) as record:
        counted = counted_flops(lambda: call(model, inputs, 1))
    lengths = layer_lengths(record.calls[0], decoder.layers)
    rows, length = inputs["input_ids"].shape
    assert lengths[:2] == (length, length)
    assert lengths[2] < length
    formula = prefill_flops(
        decoder, lengths, rows=rows, tower=tower, pictures=inputs["pixel_values"].shape[0], causal="full"
    )
    last_row = 2 * rows * length * decoder.heads * decoder.head
    assert disagreement(formula.total + last_row, counted.total) <= TOLERANCE


@pytest.mark.parametrize("strategy", [None, ByContent(), InDecoder()], ids=repr)
def test_decoding_steps_agree(strategy: PruningStrategy | None) -> None:
    model, make_inputs = tiny_llava(layers=4)
    inputs = make_inputs(["what is <3> now"])
    decoder = DecoderShape.of(model.config)
    with prune(model, KeepAll() if strategy is None else strategy) as record:
        totals = [counted_flops(lambda n=n: call(model, inputs, n)).total for n in (1, 3)]  # type: ignore[misc]
    held = layer_lengths(record.calls[-1], decoder.layers)
    steps = [decode_flops(decoder, [n + step for n in held]) for step in (0, 1)]
    assert disagreement(sum(steps), totals[1] - totals[0]) <= TOLERANCE


def test_half_of_the_causal_matrix_is_half_and_its_diagonal() -> None:
    decoder = DecoderShape(layers=1, width=8, inner=16, heads=2, kv_heads=1, head=4, vocabulary=10)
    half, full = (prefill_flops(decoder, [6], causal=causal).attention for causal in ("half", "full"))
    pairs = sum(1 for query in range(6) for key in range(6) if key <= query)
    assert (half, full) == (4 * 8 * pairs, 4 * 8 * 36)
    # One token after another computes what the prompt in one piece needs.
    one_by_one = sum(decode_flops(decoder, [past]) for past in range(6))
    whole = prefill_flops(decoder, [6])
    assert one_by_one == whole.layers + whole.attention + 6 * whole.head


def test_the_counter_sees_a_wrong_formula() -> None:
    model, make_inputs = tiny_llava()
    inputs = make_inputs(["what is <3> now"])
    decoder = DecoderShape.of(model.config)
    counted = counted_flops(lambda: call(model, inputs, 1)).modules[
        "LlavaForConditionalGeneration.model.language_model"
    ]
    length = inputs["input_ids"].shape[1]
    right = prefill_flops(decoder, [length] * decoder.layers, causal="full")
    assert disagreement(right.prefill - right.head, counted) <= TOLERANCE
    wrong = DecoderShape(**{**vars(decoder), "kv_heads": decoder.heads})
    assert disagreement(prefill_flops(wrong, [length] * decoder.layers, causal="full").layers, counted) > TOLERANCE
    half = prefill_flops(decoder, [length] * decoder.layers)
    assert disagreement(half.prefill - half.head, counted) > TOLERANCE


def test_rows_that_a_tower_merges_cost_less_and_must_be_one_per_layer() -> None:
    tower = TowerShape.of(tiny_llava()[0].config)
    assert tower_flops(tower, 2) == tower_flops(tower, 2, [17, 17, 17]) > tower_flops(tower, 2, [17, 10, 8])
    with pytest.raises(ValueError, match="3 entries"):
        tower_flops(tower, 1, [17])


def test_refusals() -> None:
    model, _ = tiny_llava()
    decoder = DecoderShape.of(model.config)
    with pytest.raises(ValueError, match="2 entries"):
        prefill_flops(decoder, [5])
    text = model.config.text_config
    text.model_type = "opt"
    with pytest.raises(ValueError, match="'opt'"):
        DecoderShape.of(model.config)
    model.config.vision_config.model_type = "siglip_vision_model"
    with pytest.raises(ValueError, match="clip_vision_model"):
        TowerShape.of(model.config)


def test_a_call_without_images_has_one_length() -> None:
    model, make_inputs = tiny_llava()
    with prune(model, InDecoder(layer=1)) as record:
        model.generate(**make_inputs(["no picture here"]), max_new_tokens=1)
    assert layer_lengths(record.calls[0], 2) == (4, 4)


def test_nothing_counted_is_no_agreement() -> None:
    assert disagreement(0, 0) == 0
    assert disagreement(1, 0) == float("inf")
    with pytest.raises(KeyError, match="lm_head"):
        counted_flops(lambda: torch.ones(2, 2) @ torch.ones(2, 2)).of("lm_head")


def test_the_sequences_of_a_context_and_of_the_runner_agree() -> None:
    from tokenprune.evaluate.answer import answer_timed

    model, make_inputs = tiny_llava(layers=4)
    inputs = make_inputs(BATCHES["padded"])
    adapter = adapter_for(model)
    for strategy in (ByContent(), InDecoder(), ByContent() >> InDecoder(layer=3)):
        with prune(model, strategy) as record:
            output = call(model, inputs, 4)
        ran = answer_timed(adapter, inputs, adapter.encode(inputs, {IMAGE_KEY}), strategy, max_new_tokens=4)
        assert ran.lengths == layer_lengths(record.calls[0], 4)
        assert torch.equal(ran.new, output[:, inputs["input_ids"].shape[1] :])
