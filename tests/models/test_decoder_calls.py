"""Pruning inside the decoder: nothing stays behind, runs twice or gets past, and what cannot work is refused."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import eager_attention_forward

from tests.models.decoder_oracle import Attended, InDecoder
from tests.models.oracle import BATCHES, ByContent, traces
from tests.models.test_decoder_generate import LAYERS, tiny
from tokenprune import Choice, GreedyRepMax, PruningStrategy, Tokens, parse, prune, prune_inputs
from tokenprune import strategy as method
from tokenprune.baselines import FastV
from tokenprune.core import places
from tokenprune.core.signals import signal_named
from tokenprune.models import UnsupportedError, adapter_for, build_prompt, select_tokens
from tokenprune.models.reading import attended
from tokenprune.models.reading.tap import TAP, attention_rows, tap
from tokenprune.testing import tiny_llava

ROWS = BATCHES["padded"]
STRATEGY = GreedyRepMax(0.75) >> FastV(6, layer=1) >> Attended(layer=3)


class PlannedError(Exception):
    """Raised on purpose."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise PlannedError


@method("failing_inside", register=False)
class Failing(InDecoder):
    """Raises while selecting, with a tap having been open."""

    needs = (signal_named("decoder_attention"),)

    def requested(self, tokens: Tokens) -> int | None:
        return None

    def choose(self, tokens: Tokens) -> Choice:
        raise PlannedError


def in_a_stage(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, FastV(6, layer=1) >> Failing(layer=3)):
        model.generate(**inputs, max_new_tokens=2)


def in_a_stage_of_a_forward(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, Failing()):
        model(**inputs)


def in_a_tapped_layer(model: Any, inputs: dict[str, Any]) -> None:
    handle = model.model.language_model.layers[2].mlp.register_forward_pre_hook(fail)
    try:
        with prune(model, FastV(6, layer=3)):
            model(**inputs)
    finally:
        handle.remove()


def while_decoding(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, STRATEGY):
        model.generate(**inputs, max_new_tokens=3, prefix_allowed_tokens_fn=fail)


def in_the_body(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, STRATEGY):
        model.generate(**inputs, max_new_tokens=2)
        model(**inputs)
        raise PlannedError


@pytest.mark.parametrize("run", [in_a_stage, in_a_stage_of_a_forward, in_a_tapped_layer, while_decoding, in_the_body])
def test_everything_is_restored(run: Callable[[Any, dict[str, Any]], None]) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    logits = model(**inputs).logits
    sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    before = traces(model)
    with pytest.raises(PlannedError):
        run(model, inputs)
    assert traces(model) == before
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), sequences)


def test_the_model_can_be_used_on_after_an_error_inside_the_context() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGY) as record:
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        handle = model.model.language_model.layers[1].register_forward_pre_hook(fail)
        for call in (lambda: model(**inputs), lambda: model.generate(**inputs, max_new_tokens=2)):
            with pytest.raises(PlannedError):
                call()
        handle.remove()
        text = make_inputs(["only words here"])
        assert model(**text).logits.shape[1] == 4
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)
    assert len(record.images) == 6


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupt_from_the_keyboard_leaves_nothing_behind() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    before = traces(model)
    with prune(model, STRATEGY) as record:
        for again in (True, False):
            handle = model.model.language_model.layers[2].mlp.register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                model(**inputs)  # the tap on this layer is open
            handle.remove()
            if again:
                model(**inputs)
        assert len(record.calls) == 1
    assert traces(model) == before


def test_no_layer_runs_twice() -> None:
    model, make_inputs = tiny()
    calls = [0] * LAYERS

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[number] += 1

        return hook

    layers = model.model.language_model.layers
    handles = [layer.self_attn.k_proj.register_forward_hook(count(i)) for i, layer in enumerate(layers)]
    with prune(model, STRATEGY):
        model.generate(**make_inputs(ROWS), max_new_tokens=5)
        assert calls == [5] * LAYERS
        model(**make_inputs(ROWS))
    for handle in handles:
        handle.remove()
    assert calls == [6] * LAYERS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_tap_reads_what_eager_attention_computes(attention: str) -> None:
    """Padded rows, and twice as many query heads as key heads."""
    model, make_inputs = tiny(attention)
    inputs = make_inputs(ROWS)
    whole = tiny("eager")[0](**inputs, output_attentions=True).attentions
    visible = inputs["attention_mask"].bool()
    hidden = torch.zeros(visible.shape[0], 1, 1, visible.shape[1]).masked_fill(~visible[:, None, None], -1e30)
    for number in range(LAYERS):
        module = model.model.language_model.layers[number].self_attn
        assert module.num_key_value_groups == 2
        with tap(module, lambda *read: read) as seen:
            assert module.config._attn_implementation == TAP
            model(**inputs)
        assert module.config._attn_implementation == attention
        query, key, scaling = seen[0]
        row = attention_rows(query[:, :, -1:], key, scaling, visible)
        _, eager = eager_attention_forward(module, query[:, :, -1:], key, key, hidden, scaling)
        assert (row - eager).abs().max() <= 1e-6
        # Of a model that is eager throughout, up to what the layers before it differ by.
        assert (row[:, :, 0] - whole[number][:, :, -1]).abs().max() <= 3e-6


def test_attention_is_read_only_when_a_stage_asks_and_only_for_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny()
    read = []

    def counted(*args: Any) -> Any:
        read.append(1)
        return attention_rows(*args)

    monkeypatch.setattr(attended, "attention_rows", counted)
    for strategy, times in ((InDecoder(), 0), (InDecoder(layer=1) >> FastV(3, layer=2), 1), (STRATEGY, 2)):
        read.clear()
        with prune(model, strategy):
            model.generate(**make_inputs(ROWS), max_new_tokens=4)
        assert len(read) == times


def test_prompts_without_images_pass_unchanged() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["no image here", "nor here at all"])
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with prune(model, STRATEGY) as record:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
        model(**inputs)
    assert record.images == []
    assert len(record.calls) == 2


def test_columns_of_a_forward_say_what_its_logits_belong_to() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["two images"])
    with prune(model, STRATEGY) as record:
        logits = model(**inputs).logits
    call = record.calls[-1]
    assert call.columns is not None
    assert logits.shape[:2] == call.columns.shape
    assert call.columns_kept == call.columns.shape[1]
    for row, columns in enumerate(call.columns):
        left = columns[columns >= 0]
        assert torch.equal(left, left.sort().values)
        text = (inputs["input_ids"][row] != 3) & inputs["attention_mask"][row].bool()
        assert set(text.nonzero().flatten().tolist()) <= set(left.tolist())
        assert len(left) == int(text.sum()) + sum(i.tokens_kept for i in call.images if i.prompt == row)
    entry = record.to_dict()["calls"][0]["images"][0]
    assert entry["layer"] == 3
    assert entry["layer_tokens"] == list(call.images[0].layer_tokens)
    assert entry["layer_average"] == sum(entry["layer_tokens"]) / LAYERS


def test_threads_take_turns() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGY):
        alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    results = []
    with prune(model, STRATEGY) as record:
        work = [
            lambda: results.append(model.generate(**inputs, max_new_tokens=4, do_sample=False)),
            lambda: results.append(model.generate(**inputs, max_new_tokens=4, do_sample=False)),
            lambda: model(**inputs),
        ]
        threads = [threading.Thread(target=do) for do in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 2
    assert all(torch.equal(result, alone) for result in results)
    assert len(record.images) == 9


def test_stages_that_did_not_fire_are_an_error() -> None:
    model, make_inputs = tiny_llava(7, layers=LAYERS)
    inputs = make_inputs(ROWS)
    layers = model.model.language_model.layers

    for call in (lambda: model.generate(**inputs, max_new_tokens=2), lambda: model(**inputs)):
        with pytest.raises(RuntimeError, match="removed while the context was open"), prune(model, FastV(3)):  # noqa: PT012
            for layer in layers:
                layer._forward_pre_hooks.clear()
            with pytest.raises(RuntimeError, match="were changed"):
                call()


REFUSED_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"use_cache": False}, "use_cache=True"),
    ({"cache_implementation": "offloaded"}, "offloaded"),
    ({"cache_implementation": "quantized"}, "quantized"),
    ({"guidance_scale": 2.0}, "guidance_scale"),
    ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED_SETTINGS, ids=str)
def test_ways_of_generating_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    model, make_inputs = tiny()
    with prune(model, FastV(3)) as record:
        with pytest.raises(UnsupportedError, match=message):
            model.generate(**make_inputs(ROWS), max_new_tokens=2, **settings)
        assert model.generate(**make_inputs(ROWS), max_new_tokens=1, past_key_values=DynamicCache()) is not None
    assert len(record.calls) == 1


def test_labels_in_generate_and_continued_caches_are_refused() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, FastV(3)):
        with pytest.raises(UnsupportedError, match="labels"):
            model.generate(**inputs, labels=inputs["input_ids"], max_new_tokens=2)
        output = model(**inputs, use_cache=True)
        length = output.logits.shape[1]
        with pytest.raises(UnsupportedError, match="shorter"):
            model(
                input_ids=torch.tensor([[5], [6], [7]]),
                attention_mask=torch.ones(3, length + 1),
                position_ids=torch.full((3, 1), length),
                past_key_values=output.past_key_values,
            )


def test_generate_is_refused_where_checkpointing_leaves_the_cache_empty() -> None:
    model, make_inputs = tiny_llava(8, layers=LAYERS)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with prune(model, STRATEGY):
        model.train()
        with pytest.raises(UnsupportedError, match=r"gradient checkpointing.* call model.eval\(\) before"):
            model.generate(**make_inputs(ROWS), max_new_tokens=2)
        model.eval()
        model.generate(**make_inputs(ROWS), max_new_tokens=2)


@method("merging_inside", register=False)
class Merging(InDecoder):
    """Claims to merge."""

    yields = "merged"


@method("too_early", register=False)
class TooEarly(ByContent):
    """Wants attention of the decoder before there is any."""

    needs = (signal_named("decoder_attention"),)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FastV(3, layer=LAYERS), "layers 0 to 3"),
        (Merging(), "makes new tokens"),
        (TooEarly(), "before its language model"),
        (InDecoder(layer=0), "layer=0"),
    ],
    ids=repr,
)
def test_strategies_that_do_not_fit_are_refused_before_the_context_opens(
    strategy: PruningStrategy, message: str
) -> None:
    model, _ = tiny()
    with pytest.raises(UnsupportedError, match=message):
        prune(model, strategy)


def test_sliding_windows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_llava(9, layers=LAYERS)
    monkeypatch.setattr(model.model.language_model.config, "sliding_window", 8, raising=False)
    with pytest.raises(UnsupportedError, match="full attention"):
        prune(model, FastV(3))
    with prune(model, GreedyRepMax(3)):
        pass


def test_functions_that_stop_before_the_language_model_refuse_stages_inside() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with pytest.raises(UnsupportedError, match="inside the language model"):
        prune_inputs(model, STRATEGY, **inputs)  # type: ignore[arg-type]
    adapter = adapter_for(model)
    with pytest.raises(UnsupportedError, match="inside the language model"):
        select_tokens(STRATEGY, build_prompt(adapter, inputs, adapter.encode(inputs)))


def test_pipelines_check_sites_and_layers_when_they_are_built() -> None:
    assert parse(repr(STRATEGY), known={"attended": Attended}) == STRATEGY
    assert STRATEGY.place == places.InDecoder(3, "compact")
    with pytest.raises(ValueError, match="earlier in the model"):
        FastV(3) >> GreedyRepMax(3)
    with pytest.raises(ValueError, match="order the stages by layer"):
        FastV(5, layer=3) >> FastV(3, layer=2)
    for bad in (0, -1, True, 1.5, "2"):
        with pytest.raises((TypeError, ValueError), match="FastV: layer must be an int of at least 1"):
            FastV(3, layer=bad)  # type: ignore[arg-type]
