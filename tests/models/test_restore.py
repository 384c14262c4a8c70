"""Nothing stays on the model, and nothing gets past the pruning unseen."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.oracle import BATCHES, ByContent, tiny, traces
from tokenprune import Choice, Tokens, prune
from tokenprune import strategy as method
from tokenprune.core import strategy as core
from tokenprune.core.signals import signal_named
from tokenprune.models import UnsupportedError
from tokenprune.testing import tiny_llava

ROWS = BATCHES["padded"]


class PlannedError(Exception):
    """Raised on purpose."""


@method("failing", register=False)
class Failing(core.Stage):
    """Raises while selecting."""

    needs = (signal_named("cls_attention"),)

    def requested(self, tokens: Tokens) -> int | None:
        return None

    def choose(self, tokens: Tokens) -> Choice:
        raise PlannedError


def fail(*args: Any, **kwargs: Any) -> Any:
    raise PlannedError


def in_strategy(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, Failing()):
        model.generate(**inputs, max_new_tokens=2)


def in_strategy_of_a_forward(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, Failing()):
        model(**inputs)


def in_generate(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, ByContent()):
        model.generate(**inputs, max_new_tokens=2, prefix_allowed_tokens_fn=fail)


def in_the_tower(model: Any, inputs: dict[str, Any]) -> None:
    handle = model.model.vision_tower.encoder.layers[2].register_forward_pre_hook(fail)
    try:
        with prune(model, Failing()):  # its taps are open while the tower fails
            model.generate(**inputs, max_new_tokens=2)
    finally:
        handle.remove()


def in_the_language_model(model: Any, inputs: dict[str, Any]) -> None:
    handle = model.model.language_model.layers[1].register_forward_pre_hook(fail)
    try:
        with prune(model, ByContent()):
            model(**inputs)
    finally:
        handle.remove()


def in_the_body(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, ByContent()):
        model.generate(**inputs, max_new_tokens=2)
        raise PlannedError


def nowhere(model: Any, inputs: dict[str, Any]) -> None:
    with prune(model, ByContent()):
        model.generate(**inputs, max_new_tokens=2)
        model(**inputs)
    raise PlannedError


PLACES = [
    in_strategy,
    in_strategy_of_a_forward,
    in_generate,
    in_the_tower,
    in_the_language_model,
    in_the_body,
    nowhere,
]


@pytest.mark.parametrize("run", PLACES)
def test_everything_is_restored(run: Callable[[Any, dict[str, Any]], None]) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    logits = model(**inputs).logits
    sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    before = traces(model)
    with pytest.raises(PlannedError):
        run(model, inputs)
    assert traces(model) == before
    assert "generate" not in vars(model)
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), sequences)
    with prune(model, ByContent()) as record:  # and the model can be pruned again
        model.generate(**inputs, max_new_tokens=2)
    assert len(record.images) == 3


def test_an_own_generate_on_the_instance_comes_back() -> None:
    model, make_inputs = tiny_llava(3)
    plain = model.generate
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return plain(*args, **kwargs)

    model.generate = wrapped
    with prune(model, ByContent()) as record:
        model.generate(**make_inputs(ROWS), max_new_tokens=2)
    assert model.generate is wrapped
    assert len(calls) == 1
    assert len(record.images) == 3


def without_hook(model: Any, inputs: dict[str, Any]) -> None:
    model._forward_pre_hooks.clear()
    model(**inputs)


def without_generate(model: Any, inputs: dict[str, Any]) -> None:
    del model.generate
    model.generate(**inputs, max_new_tokens=2)


def past_generate(model: Any, inputs: dict[str, Any]) -> None:
    type(model).generate(model, **inputs, max_new_tokens=2)


def by_the_base_model(model: Any, inputs: dict[str, Any]) -> None:
    model.model(**inputs)


def with_no_hook_at_all(model: Any, inputs: dict[str, Any]) -> None:
    model._forward_pre_hooks.clear()
    model.model.vision_tower._forward_pre_hooks.clear()
    model(**inputs)


@pytest.mark.parametrize("way", [without_hook, without_generate, past_generate, by_the_base_model, with_no_hook_at_all])
def test_visual_tokens_that_get_past_are_an_error(way: Callable[[Any, dict[str, Any]], None]) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = make_inputs(ROWS)
    with pytest.raises((RuntimeError, UnsupportedError), match="prune"), prune(model, ByContent()):
        way(model, inputs)
    assert "generate" not in vars(model)
    model.generate(**inputs, max_new_tokens=1)


def test_hooks_that_cannot_be_put_on_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny()

    class Handle:
        id = -1

        def remove(self) -> None:
            pass

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", lambda *args, **kwargs: Handle())
    with pytest.raises(RuntimeError, match="could not be put on the model"), prune(model, ByContent()):
        pass
    assert "generate" not in vars(model)


def test_a_context_without_calls_is_fine() -> None:
    model, _ = tiny()
    with prune(model, ByContent()) as record:
        pass
    assert record.images == []


def test_one_model_in_two_contexts_is_refused() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    refused: list[BaseException] = []

    def other() -> None:
        try:
            with prune(model, ByContent()):
                pass
        except RuntimeError as error:
            refused.append(error)

    with prune(model, ByContent()) as record:
        with pytest.raises(RuntimeError, match="being pruned already"), prune(model, ByContent()):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        model.generate(**inputs, max_new_tokens=2)  # the outer context still holds
    assert len(refused) == 1
    assert len(record.images) == 3


def test_threads_may_call_inside_and_two_models_in_two_threads_work() -> None:
    models = [tiny(), tiny("eager")]
    alone = []
    for model, make_inputs in models:
        with prune(model, ByContent()):
            alone.append(model.generate(**make_inputs(ROWS), max_new_tokens=4, do_sample=False))
    results: dict[tuple[int, int], torch.Tensor] = {}

    def run(which: int, number: int) -> None:
        model, make_inputs = models[which]
        results[which, number] = model.generate(**make_inputs(ROWS), max_new_tokens=4, do_sample=False)

    with prune(models[0][0], ByContent()) as first, prune(models[1][0], ByContent()) as second:
        threads = [threading.Thread(target=run, args=(which, number)) for which in range(2) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(results[which, number], alone[which]) for which, number in results)
    assert len(results) == 4
    assert len(first.images) == len(second.images) == 6
