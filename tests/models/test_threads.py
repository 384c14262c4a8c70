"""Several threads in one context: each gets what it gets alone, however their calls interleave."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from tests.models.oracle import tiny, traces
from tests.models.sites import FAMILIES, IN_THE_TOWER, ONE_OF_A_KIND, Outcome, Scene, outcome, places, sites
from tests.models.test_clip import tiny_clip_model, tiny_tokenizer
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import TRIM, CDPruner
from tokenprune.models import CallRecord, Clip, Record, adapter_for
from tokenprune.models.families.tiles import inputs_of
from tokenprune.models.reading.tap import tap
from tokenprune.testing.tiny.models import SIDE

THREADS, ROUNDS = 4, 8
# Images whose numbers differ by 4 have one shape and other content: rows that got mixed up would raise no error.
PROMPTS = [(f"look at <{4 * number}> now",) for number in range(THREADS)]
CASES = [
    pytest.param(family, site, marks=() if family in ONE_OF_A_KIND else pytest.mark.matrix)
    for family in FAMILIES
    for site in sites(family)
]


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(work: list[Callable[[], None]]) -> None:
    """Run functions at the same time, each in a thread; the first error of any of them is raised here."""
    start, errors = threading.Barrier(len(work)), list[BaseException]()

    def run(task: Callable[[], None]) -> None:
        start.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if errors:
        raise errors[0]


def entry(call: CallRecord) -> tuple[Any, ...]:
    """What a record says of a call, without the number and times."""
    columns = None if call.columns is None else call.columns.flatten().tolist()
    images = [(image.prompt, image.tokens_in, image.indices.tolist(), image.layer_tokens) for image in call.images]
    return call.kind, call.columns_kept, str(columns), str(images)


def alone(
    model: Any, scenes: list[Scene], names: list[str], **options: Any
) -> tuple[dict[Any, Outcome], dict[Any, Any]]:
    """Outcome and record of every call of every scene, one after another."""
    results: dict[Any, Outcome] = {}
    entries: dict[Any, Any] = {}
    with prune(model, **options) as record:
        for number, scene in enumerate(scenes):
            for name in names:
                results[number, name] = outcome(scene.calls[name])
                assert results[number, name].logits is not None, results[number, name].error
                entries[number, name] = entry(record.calls[-1])
    return results, entries


def check(model: Any, scenes: list[Scene], names: list[str], **options: Any) -> Record:
    """Every scene in a thread of its own, all in one context: logits and record are those of `alone`."""
    expected, entries = alone(model, scenes, names, **options)
    forwards = [expected[number, "forward"] for number in range(len(scenes))]
    assert not any(a.matches(b) for a in forwards for b in forwards if a is not b), "answers must tell images apart"
    before = traces(model)
    wrong: list[str] = []
    with prune(model, **options) as record:

        def work(number: int) -> None:
            for turn in range(ROUNDS):
                name = names[(number + turn) % len(names)]
                result = outcome(scenes[number].calls[name])
                if not result.matches(expected[number, name]):
                    wrong.append(f"thread {number}, {name}: {result.error or 'other logits'}")

        together([partial(work, number) for number in range(len(scenes))])
    assert wrong == []
    asked = [(number, names[(number + turn) % len(names)]) for number in range(len(scenes)) for turn in range(ROUNDS)]
    assert Counter(map(entry, record.calls)) == Counter(entries[call] for call in asked)
    assert [image.call for call in record.calls for image in call.images] == [image.call for image in record.images]
    assert traces(model) == before
    return record


@pytest.mark.parametrize(("family", "site"), CASES)
def test_each_thread_gets_what_it_gets_alone(family: str, site: str) -> None:
    scenes = [Scene(family, prompts) for prompts in PROMPTS]
    shapes = {scene.inputs["pixel_values"].shape for scene in scenes}
    assert len(shapes) == 1
    names = ["generate", "forward", "text: generate", "generate"]
    check(scenes[0].model, scenes, names, strategy=sites(family)[site])


def call_other(call: Callable[[], Any], results: list[Outcome]) -> None:
    together([lambda: results.append(outcome(call))])


@contextmanager
def before(module: torch.nn.Module, task: Callable[[], None]) -> Iterator[None]:
    """While open, the next call of the module waits for a task."""
    done: list[bool] = []

    def hook(module: Any, args: Any) -> None:
        if not done:
            done.append(True)
            task()

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    assert done


@pytest.mark.parametrize(("family", "site"), CASES)
def test_a_call_in_the_middle_of_another_ones_module(family: str, site: str) -> None:
    """One thread stops before each module until another one's whole call is over: the worst that can happen."""
    mine, other = (Scene(family, prompts) for prompts in PROMPTS[:2])
    length = mine.inputs["input_ids"].shape[1]
    other.text = mine.make_inputs([" ".join(f"w{number}" for number in range(length - 1))])
    assert other.text["input_ids"].shape == mine.inputs["input_ids"].shape
    model, strategy = mine.model, sites(family)[site]
    expected, _ = alone(model, [mine, other], ["generate", "forward", "text: forward"], strategy=strategy)
    for place, module in places(model).items():
        # With images there is one in the tower that merges, and one in a decoder with stages.
        name = "generate" if place in IN_THE_TOWER and "tower" not in site else "text: forward"
        results: list[Outcome] = []
        for call in ("generate", "forward"):
            with prune(model, strategy), before(module, partial(call_other, other.calls[name], results)):
                result = outcome(mine.calls[call])
            assert result.matches(expected[0, call]), f"{call} before the {place}: {result}"
            found = results.pop()
            assert found.matches(expected[1, name]), f"{name} in the middle of {call}, before the {place}: {found}"


@pytest.mark.parametrize("strategy", [CDPruner(3), TRIM(3)], ids=repr)
def test_with_clip_beside_the_model(strategy: PruningStrategy) -> None:
    scenes = [Scene("llava", prompts, tiny()) for prompts in PROMPTS]
    clip = Clip(tiny_clip_model(), tiny_tokenizer(), question=lambda ids: "w7 w8 w30")
    check(scenes[0].model, scenes, ["generate", "forward"], strategy=strategy, clip=clip)


def test_frozen_choices() -> None:
    scenes = [Scene("llava", prompts) for prompts in PROMPTS]
    check(scenes[0].model, scenes, ["generate", "forward"], strategy=sites("llava")["projector"], turns="freeze")


@pytest.mark.parametrize("what", ["tap", "inputs_of"])
def test_a_reader_sees_its_own_thread_only(what: str) -> None:
    """While one is open here, other threads run the same modules, with readers of their own or without."""
    model, _ = tiny()
    adapter = adapter_for(model)
    tower, module = adapter.vision_tower, adapter.vision_attention[1]
    pixels = [torch.full((1, 3, SIDE, SIDE), float(number)) for number in range(THREADS)]
    config = module.config

    def reader() -> Any:
        return inputs_of(tower) if what == "inputs_of" else tap(module, lambda query, key, scaling: (query, scaling))

    def read(number: int) -> Any:
        with reader() as seen, torch.no_grad():
            tower(pixels[number])
        return seen

    expected = [read(number) for number in range(THREADS)]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        for turn in range(20):
            if turn % 3 == 2:
                with torch.no_grad():
                    tower(pixels[number])  # no reader of its own
            elif not same(read(number), expected[number]):
                found[number] = "other rows"

    def same(a: Any, b: Any) -> bool:
        return len(a) == len(b) == 1 and all(
            torch.allclose(x, y, atol=1e-6) if isinstance(x, torch.Tensor) else x == y
            for x, y in zip(parts(a[0]), parts(b[0]), strict=True)
        )

    with reader() as mine:
        together([partial(work, number) for number in range(THREADS)])
        assert mine == []
        with torch.no_grad():
            tower(pixels[0])
    assert same(mine, expected[0])
    assert found == {}
    assert module.config is config


def parts(reading: Any) -> tuple[Any, ...]:
    return reading if isinstance(reading, tuple) else (reading,)
