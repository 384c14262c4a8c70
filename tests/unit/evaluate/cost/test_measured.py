"""Timers, memory and caches: structure and arithmetic, never how long something takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.models.decoder_oracle import InDecoder
from tests.models.oracle import BATCHES, ByContent
from tokenprune import PruningStrategy, prune
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.evaluate.answer import answer_timed
from tokenprune.evaluate.cost import (
    DecoderShape,
    Spread,
    cache_layers,
    kv_bytes,
    layer_lengths,
    peak_memory,
    spread,
    time_call,
)
from tokenprune.evaluate.cost import memory as memory_module
from tokenprune.evaluate.cost import timing as timing_module
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_llava

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows what the test sets."""
    time = [0.0]
    monkeypatch.setattr(timing_module, "now", lambda device: time[0])
    return time


def test_median_and_quartiles_of_the_calls_after_the_warm_up(clock: list[float]) -> None:
    durations = iter([100.0, 100.0, 0.001, 0.005, 0.002, 0.004, 0.003])

    def work() -> None:
        clock[0] += next(durations)

    found = time_call(work, CPU, warmup=2, repeats=5)
    assert [found.median, found.low, found.high] == pytest.approx([3.0, 2.0, 4.0])


def test_three_calls_count_however_long_they_take(clock: list[float]) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        clock[0] += 60.0

    assert time_call(work, CPU, warmup=1, repeats=10, seconds=1.0).median == pytest.approx(60e3)
    assert len(calls) == 4


def test_refusals() -> None:
    with pytest.raises(ValueError, match="repeats 1 or more"):
        time_call(lambda: None, CPU, repeats=0)
    with pytest.raises(TypeError, match="NoneType"):
        cache_layers(None)
    model, _ = tiny_llava()
    with pytest.raises(TypeError, match="DynamicCache"):
        cache_layers(DynamicCache(config=model.config.text_config))  # layers that hold nothing yet


def test_a_spread_of_nothing() -> None:
    assert spread([]) is None
    assert spread([2.0]) == Spread(median=2.0, low=2.0, high=2.0)


def test_the_peak_is_above_what_was_held_for_a_moment() -> None:
    with peak_memory(CPU) as peak:
        torch.ones(32 * 2**20)  # 128 MiB, gone again
    if peak.total is None or peak.above is None:
        assert (peak.what, peak.total, peak.above) == (memory_module.NOTHING, None, None)
    else:
        assert 100 * 2**20 < peak.above <= peak.total
        assert peak.what == memory_module.RESIDENT


def test_a_system_without_a_mark_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_STATUS", "_RESET"):
        monkeypatch.setattr(memory_module, name, tmp_path / "missing" / name)
    with peak_memory(CPU) as peak:
        pass
    assert (peak.what, peak.total, peak.above) == (memory_module.NOTHING, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", [None, ByContent(), InDecoder(), ByContent() >> InDecoder(layer=3)], ids=repr)
def test_the_cache_holds_what_every_layer_was_given(strategy: PruningStrategy | None, dtype: torch.dtype) -> None:
    model, make_inputs = tiny_llava(layers=4, dtype=dtype)
    inputs: dict[str, Any] = make_inputs(BATCHES["padded"])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    rows, length = inputs["input_ids"].shape
    adapter = adapter_for(model)
    with torch.no_grad():
        vision = adapter.encode(inputs, {IMAGE_KEY})
    ran = answer_timed(adapter, inputs, vision, strategy, max_new_tokens=3)
    lengths: tuple[int, ...] = (length,) * 4
    if strategy is not None:
        with prune(model, strategy) as record:
            model.generate(**inputs, max_new_tokens=1)
        lengths = layer_lengths(record.calls[0], 4)
    held = cache_layers(ran.cache)
    # The last new token is chosen and never fed.
    assert [layer.tokens for layer in held] == [n + 2 for n in lengths]
    element = torch.empty(0, dtype=dtype).element_size()
    per_token = DecoderShape.of(model.config).kv_bytes(element)
    assert [layer.bytes for layer in held] == [rows * layer.slots * per_token for layer in held]
    assert kv_bytes(ran.cache) == sum(rows * (n + 2) * per_token for n in lengths)
    assert (ran.selection is None) == (strategy is None)
    assert ran.first_token >= ran.prefill > 0


def test_a_static_cache_holds_more_slots_than_tokens() -> None:
    model, make_inputs = tiny_llava()
    inputs = make_inputs(BATCHES["padded"])
    adapter = adapter_for(model)
    vision = adapter.encode(inputs, {IMAGE_KEY})
    options = {"cache_implementation": "static", "disable_compile": True}
    static = answer_timed(adapter, inputs, vision, ByContent(), max_new_tokens=3, options=options)
    dynamic = answer_timed(adapter, inputs, vision, ByContent(), max_new_tokens=3)
    assert torch.equal(static.new, dynamic.new)
    assert [layer.tokens for layer in cache_layers(static.cache)] == [x.tokens for x in cache_layers(dynamic.cache)]
    assert all(layer.slots >= layer.tokens for layer in cache_layers(static.cache))
    assert kv_bytes(static.cache) >= kv_bytes(dynamic.cache)
