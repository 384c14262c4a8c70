"""A call that ends in an error or an interruption, at any place, leaves nothing behind that a later call could meet."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.oracle import traces
from tests.models.sites import FAMILIES, IN_THE_TOWER, ONE_OF_A_KIND, Outcome, Scene, outcome, places, sites
from tokenprune import prune
from tokenprune.models import Record, UnsupportedError

EXCEPTIONS: tuple[type[BaseException], ...] = (ValueError, KeyboardInterrupt, GeneratorExit)
WITH_IMAGES = ("generate", "static cache", "forward")
CASES = [
    pytest.param(family, site, marks=() if family in ONE_OF_A_KIND else pytest.mark.matrix)
    for family in FAMILIES
    for site in sites(family)
]


@contextmanager
def interruption(module: nn.Module, before: bool, exception: type[BaseException]) -> Iterator[list[bool]]:
    """While open, the next call of the module raises; the list has an entry then."""
    fired: list[bool] = []

    def stop(*args: Any) -> None:
        fired.append(True)
        handle.remove()
        raise exception("stop here")

    handle = module.register_forward_pre_hook(stop) if before else module.register_forward_hook(stop)
    try:
        yield fired
    finally:
        handle.remove()


def interrupt(call: Callable[[], Any], module: nn.Module, before: bool, exception: type[BaseException]) -> bool:
    """Make a call that ends in the exception; False when the module is no part of it."""
    with interruption(module, before, exception) as fired:
        try:
            call()
        except BaseException as error:
            if not fired or "stop here" not in str(error):
                raise
            return True
    assert not fired, "the exception was swallowed"
    return False


def told(record: Record) -> list[list[int]]:
    """What the last call kept."""
    return [image.indices.tolist() for image in record.calls[-1].images]


def fresh(scene: Scene, strategy: Any) -> dict[str, tuple[Outcome, Any]]:
    """Every call's outcome, each in a context of its own, and what it kept."""
    found: dict[str, tuple[Outcome, Any]] = {}
    for name, call in scene.calls.items():
        with prune(scene.model, strategy) as record:
            scene.begin()
            result = outcome(call)
            found[name] = result, told(record) if result.logits is not None else None
    return found


def run(family: str, site: str, cases: list[tuple[str, str, bool]], every: list[str]) -> list[tuple[str, str]]:
    """Interrupt each case, with a next call of `every`; returns where there was nothing to interrupt."""
    scene, strategy = Scene(family), sites(family)[site]
    expected = fresh(scene, strategy)
    before = traces(scene.model)
    turns = cycle((exception, later) for later in every for exception in EXCEPTIONS)
    missed: list[tuple[str, str]] = []
    for name, place, first in cases:
        if expected[name][0].logits is None:  # a call that is refused, in a context of its own too
            continue
        exception, later = next(turns)
        with prune(scene.model, strategy) as record:
            scene.begin()
            if not interrupt(scene.calls[name], places(scene.model)[place], first, exception):
                missed.append((name, place))
            where = f"{exception.__name__} {'before' if first else 'after'} the {place} in {name}"
            for following in (later, "generate"):
                result, kept = expected[following]
                again = outcome(scene.calls[following])
                assert again.matches(result), f"{where}, then {following}: {again}, not {result}"
                assert kept is None or told(record) == kept, where
        assert traces(scene.model) == before, where
    return missed


@pytest.mark.parametrize(("family", "site"), CASES)
def test_every_following_call_is_that_of_a_fresh_context(family: str, site: str, request: Any) -> None:
    """Exceptions, places and next calls take turns, so that each meets many others."""
    matrix = request.node.get_closest_marker("matrix") is not None
    calls = [*Scene(family).calls] if matrix else ["generate", "forward", "text: forward"]
    cases = [
        (name, place, first)
        for name in calls
        for number, place in enumerate(places(Scene(family).model))
        for first in ((True, False) if matrix else (number % 2 == 0,))
        if name in WITH_IMAGES or place not in IN_THE_TOWER
    ]
    assert run(family, site, cases, list(Scene(family).calls)) == []


@pytest.mark.parametrize("exception", EXCEPTIONS)
@pytest.mark.parametrize("site", ["decoder", "tower and decoder", "within a layer"])
def test_a_plain_forward_under_a_stage_inside_the_decoder(site: str, exception: type[BaseException]) -> None:
    """Interrupted anywhere, with every next call."""
    scene = Scene("llava")
    strategy = sites("llava")[site]
    expected = fresh(scene, strategy)
    for place, module in places(scene.model).items():
        for later in ("static cache", "generate", "text: generate", "text: forward"):
            with prune(scene.model, strategy):
                scene.begin()
                assert interrupt(scene.forward, module, True, exception)
                again = outcome(scene.calls[later])
            assert again.matches(expected[later][0]), f"{place}, then {later}: {again}"


@pytest.mark.parametrize("exception", EXCEPTIONS)
@pytest.mark.parametrize("site", ["decoder", "mixed"])
def test_an_interrupted_forward_does_not_keep_its_turn(site: str, exception: type[BaseException]) -> None:
    """Another thread can go on; it would wait for ever for one that has left the model."""
    scene = Scene("llava")
    expected = fresh(scene, sites("llava")[site])["generate"][0]
    with prune(scene.model, sites("llava")[site]):
        assert interrupt(scene.forward, scene.model.lm_head, True, exception)
        results: list[Outcome] = []
        other = threading.Thread(target=lambda: results.append(outcome(scene.generate)), daemon=True)
        other.start()
        other.join(60)
        assert results
        assert results[0].matches(expected)


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_a_thread_that_was_interrupted_and_ended(exception: type[BaseException]) -> None:
    scene = Scene("llava")
    strategy = sites("llava")["decoder"]
    expected = fresh(scene, strategy)["forward"][0]
    before = traces(scene.model)
    with prune(scene.model, strategy):
        stopped: list[bool] = []
        other = threading.Thread(
            target=lambda: stopped.append(interrupt(scene.forward, scene.model.lm_head, True, exception)), daemon=True
        )
        other.start()
        other.join(60)
        assert stopped == [True]
        results: list[Outcome] = []
        main = threading.Thread(target=lambda: results.append(outcome(scene.forward)), daemon=True)
        main.start()
        main.join(60)
        assert results
        assert results[0].matches(expected)
    assert traces(scene.model) == before


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_a_cache_whose_continuing_was_interrupted(exception: type[BaseException]) -> None:
    """It is as it was where no layer had added to it, and refused for what happened where one had."""
    scene = Scene("llava")
    strategy = sites("llava")["projector"]
    expected = fresh(scene, strategy)["second turn"][0]
    refused = set()
    for place, module in places(scene.model).items():
        if place in IN_THE_TOWER:
            continue
        with prune(scene.model, strategy):
            scene.begin()
            cache = scene.first.past_key_values
            assert interrupt(partial(scene.turn, cache), module, True, exception)
            again = outcome(partial(scene.turn, cache))
        assert "ended in an error" in again.error or again.matches(expected), f"{place}: {again}"
        if again.error:
            refused.add(place)
            with pytest.raises(UnsupportedError, match="ended in an error"):
                scene.model(input_ids=scene.first.sequences[:, -1:], past_key_values=cache)  # outside, too
    assert {"layer 1", "head"} <= refused


def test_a_step_by_hand_that_was_interrupted() -> None:
    """Its cache is not continued: some of its layers have the token, and others do not."""
    scene = Scene("llava")
    with prune(scene.model, sites("llava")["projector"]):
        scene.begin()
        cache = scene.first.past_key_values
        length = cache.get_seq_length()

        def step(columns: int) -> None:
            with torch.no_grad():
                scene.model(
                    input_ids=scene.first.sequences[:, -1:],
                    past_key_values=cache,
                    attention_mask=torch.ones(1, columns, dtype=torch.long),
                    position_ids=torch.full((1, 1), columns - 1),
                )

        assert interrupt(lambda: step(length + 1), scene.model.model.language_model.layers[2], True, KeyboardInterrupt)
        for columns in (length + 1, length + 2):
            with pytest.raises(UnsupportedError, match="ended in an error"):
                step(columns)
        with pytest.raises(UnsupportedError, match="ended in an error"):
            scene.turn(cache)


def test_a_model_that_is_called_from_a_hook_on_itself() -> None:
    """The pruned prompt that is on its way is not forgotten unseen."""
    scene = Scene("llava")

    def ask(module: nn.Module, args: Any) -> None:
        handle.remove()
        scene.text_forward()

    with prune(scene.model, sites("llava")["decoder"]):
        handle = scene.model.register_forward_pre_hook(ask)
        with pytest.raises(RuntimeError, match="call it from no hook"):
            scene.forward()
        assert outcome(scene.forward).logits is not None


def test_a_forward_that_is_put_in_place_of_ours() -> None:
    """A wrapper around it works, and stays; one that does not call it is an error, not an answer."""
    scene = Scene("llava")
    strategy = sites("llava")["decoder"]
    expected = fresh(scene, strategy)["forward"][0]
    own = vars(scene.model)
    dense = scene.forward()
    try:
        with prune(scene.model, strategy):
            ours = scene.model.forward

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return ours(*args, **kwargs)

            own["forward"] = wrapper
            assert outcome(scene.forward).matches(expected)
        assert own["forward"] is wrapper
        assert torch.equal(scene.forward(), dense)
        own["forward"] = plain = type(scene.model).forward.__get__(scene.model)
        with prune(scene.model, strategy):
            own["forward"] = plain
            with pytest.raises(RuntimeError, match=r"model\.forward was replaced"):
                scene.forward()
    finally:
        own.pop("forward", None)
