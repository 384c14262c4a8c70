"""Every part that could fail to fire, made to fail: a run ends in an error, never in an answer from unpruned tokens."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from tests.models.decoder_oracle import Attended
from tests.models.oracle import BATCHES, ByContent, KeepAll, tiny, traces
from tests.models.test_restore import PlannedError, fail
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import FasterVLM, FastV
from tokenprune.models import Record, UnsupportedError
from tokenprune.models.calls import batch as pruning_module
from tokenprune.models.calls import session as session_module
from tokenprune.models.calls.session import Session
from tokenprune.models.decoder.attach import Inside
from tokenprune.models.decoder.run import DecoderRun
from tokenprune.testing import tiny_llava

LAYERS = 4
ROWS = BATCHES["padded"]
STRATEGIES: dict[str, PruningStrategy] = {
    "projector": ByContent(),
    "signals": FasterVLM(5),
    "decoder": FastV(6, layer=1) >> Attended(layer=3),
}
CALLS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "generate": lambda model, inputs: model.generate(**inputs, max_new_tokens=2),
    "beams": lambda model, inputs: model.generate(**inputs, max_new_tokens=2, num_beams=2),
    "forward": lambda model, inputs: model(**inputs),
}


def hooks_of(model: Any) -> list[tuple[str, str, int]]:
    """Every hook on the model: module, kind, number."""
    return [
        (name, kind, number)
        for name, module in model.named_modules()
        for kind in ("_forward_pre_hooks", "_forward_hooks")
        for number in getattr(module, kind)
    ]


def new_hooks(model: Any, strategy: PruningStrategy) -> list[tuple[str, str]]:
    """Which of them a context puts there."""
    before = hooks_of(model)
    with prune(model, strategy):
        return [(name, kind) for name, kind, number in hooks_of(model) if (name, kind, number) not in before]


PLACES = [
    (site, *place)
    for site, strategy in STRATEGIES.items()
    for place in new_hooks(tiny_llava(4, layers=LAYERS)[0], strategy)
]


def test_the_places_are_those_that_the_design_names() -> None:
    projector = {("", "_forward_pre_hooks"), ("", "_forward_hooks"), ("model.vision_tower", "_forward_pre_hooks")}
    assert {place[1:] for place in PLACES if place[0] != "decoder"} == projector
    layers = {(f"model.language_model.layers.{i}", "_forward_pre_hooks") for i in range(LAYERS)}
    assert {place[1:] for place in PLACES if place[0] == "decoder"} == projector | layers


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["removed", "does nothing"])
@pytest.mark.parametrize(("site", "name", "kind"), PLACES, ids=lambda value: str(value) or "model")
def test_a_hook_that_does_not_fire(site: str, name: str, kind: str, how: str, call: str) -> None:
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    hooks = getattr(model.get_submodule(name), kind)
    before = list(hooks)
    answers: list[Any] = []
    with (  # noqa: PT012
        pytest.raises((RuntimeError, UnsupportedError), match="prune"),
        prune(model, STRATEGIES[site]) as record,
    ):
        number = next(key for key in hooks if key not in before)
        if how == "removed":
            del hooks[number]
        else:
            hooks[number] = lambda *args: None
        with pytest.raises((RuntimeError, UnsupportedError), match="prune"):
            answers.append(CALLS[call](model, inputs))
    assert answers == []
    assert record.calls == ()
    assert list(hooks) == before
    assert "generate" not in vars(model)


def nothing(*args: Any, **kwargs: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("site", "owner", "attribute", "calls"),
    [
        ("projector", Session, "on_forward", ["forward"]),
        ("decoder", Session, "on_forward", ["forward"]),
        ("decoder", DecoderRun, "before_layer", ["generate", "beams", "forward"]),
        ("decoder", Inside, "on_layer", ["generate", "beams", "forward"]),
        ("decoder", DecoderRun, "_prefill", ["generate", "forward"]),
    ],
)
def test_our_own_functions_that_do_nothing(
    site: str, owner: type, attribute: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in this package itself: the tower's witness, or the count of stages, is the second line."""
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    keep_hidden = attribute == "_prefill"
    monkeypatch.setattr(owner, attribute, (lambda self, layer, hidden, kwargs: hidden) if keep_hidden else nothing)
    for call in calls:
        with prune(model, STRATEGIES[site]) as record, pytest.raises(RuntimeError, match="prune"):
            CALLS[call](model, inputs)
        assert record.images == []


def test_a_generate_that_goes_past_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    monkeypatch.setattr(Session, "generate", lambda self, *args, **kwargs: self.plain_generate(*args, **kwargs))
    for strategy in STRATEGIES.values():
        with prune(model, strategy), pytest.raises((RuntimeError, UnsupportedError), match="prune"):
            model.generate(**inputs, max_new_tokens=2)


PAST: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "the class's generate": lambda m, i: type(m).generate(m, **i, max_new_tokens=2),
    "forward without call": lambda m, i: m.forward(**i),
    "forward without call, by position": lambda m, i: m.forward(i["input_ids"], i["pixel_values"]),
    "the base model": lambda m, i: m.model(**i),
    "the base model's forward": lambda m, i: m.model.forward(**i),
    "features": lambda m, i: m.get_image_features(i["pixel_values"]),
    "features of the base model": lambda m, i: m.model.get_image_features(i["pixel_values"]),
    "the tower": lambda m, i: m.model.vision_tower(i["pixel_values"]),
    "compiled": lambda m, i: torch.compile(m.model, backend="eager")(**i),
    "a copy": lambda m, i: copy.deepcopy(m).generate(**i, max_new_tokens=2),
}


@pytest.mark.parametrize("site", STRATEGIES)
@pytest.mark.parametrize("way", PAST)
def test_ways_past_the_context(way: str, site: str) -> None:
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGIES[site]) as record, pytest.raises((RuntimeError, UnsupportedError, TypeError)):
        PAST[way](model, inputs)
    assert record.images == []


@pytest.mark.parametrize("site", STRATEGIES)
@pytest.mark.parametrize("call", CALLS)
def test_other_modes_prune_as_well(call: str, site: str) -> None:
    """Arguments by position, without gradients, in inference mode: the same record and logits."""
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    found = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), prune(model, STRATEGIES[site]) as record:
            output = CALLS[call](model, inputs)
        value = output if isinstance(output, torch.Tensor) else output.logits
        found.append((value.detach().clone(), [image.indices.tolist() for image in record.images]))
    assert all(torch.equal(found[0][0], other[0]) and found[0][1] == other[1] for other in found[1:])
    if call == "forward":
        with prune(model, STRATEGIES[site]) as record:
            output = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        assert torch.equal(output.logits, found[0][0])
        assert [image.indices.tolist() for image in record.images] == found[0][1]


class Passing(LlavaForConditionalGeneration):
    """Wraps generate without a signature."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **kwargs)  # type: ignore[misc]


class Looping(LlavaForConditionalGeneration):
    """Decodes by itself, with its own cache."""

    def generate(self, input_ids: Any = None, max_new_tokens: int = 2, **kwargs: Any) -> Any:  # type: ignore[override]
        output = self(input_ids=input_ids, use_cache=True, **kwargs)
        return torch.cat([input_ids, output.logits[:, -1:].argmax(-1)], dim=1)


def of_class(cls: type[Any]) -> tuple[Any, Any]:
    plain, make_inputs = tiny_llava(4, layers=LAYERS)
    model = cls(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    model.generation_config = plain.generation_config
    return model, make_inputs


@pytest.mark.parametrize("site", STRATEGIES)
def test_subclasses_with_a_generate_of_their_own(site: str) -> None:
    plain, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    with prune(plain, STRATEGIES[site]):
        expected = plain.generate(**inputs, max_new_tokens=3, do_sample=False)
    model, _ = of_class(Passing)
    ids = inputs["input_ids"]
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with prune(model, STRATEGIES[site]) as record:
        assert torch.equal(model.generate(ids, **rest, max_new_tokens=3, do_sample=False), expected)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)
    assert len(record.images) == 6
    looping, _ = of_class(Looping)
    with prune(looping, STRATEGIES[site]) as record, pytest.raises((ValueError, TypeError, RuntimeError)):
        looping.generate(**inputs)  # it would take ids and embeddings together


STAGES = [
    (session_module, "check_ids"),
    (session_module, "refuse_generate"),
    (session_module, "generate_pruned"),
    (session_module, "cached_prompt"),
    (session_module, "lock"),
    (pruning_module, "see"),
    (pruning_module, "build_prompt"),
    (pruning_module, "compact"),
    (Record, "add"),
    (DecoderRun, "_cut"),
    (DecoderRun, "check_finished"),
]


@pytest.mark.parametrize("site", STRATEGIES)
@pytest.mark.parametrize(("owner", "name"), STAGES, ids=lambda value: getattr(value, "__name__", value))
def test_nothing_stays_after_an_error_anywhere(
    owner: Any, name: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    inputs = make_inputs(ROWS)
    with prune(model, STRATEGIES[site]):  # transformers puts hooks of its own on the tower when first asked for states
        expected = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    before = traces(model)
    for leave in (True, False):
        with monkeypatch.context() as patch, prune(model, STRATEGIES[site]):
            patch.setattr(owner, name, fail)
            try:
                model.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            except PlannedError:
                if leave:
                    continue
            patch.undo()
            assert torch.equal(model.generate(**inputs, max_new_tokens=2, do_sample=False), expected)
    assert traces(model) == before


@pytest.mark.parametrize("site", STRATEGIES)
def test_nothing_stays_when_the_context_cannot_be_opened(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny_llava(4, layers=LAYERS)
    before = traces(model)
    register = nn.Module.register_forward_pre_hook
    for last in range(len([place for place in PLACES if place[0] == site and place[2] == "_forward_pre_hooks"])):
        count = iter(range(100))

        def failing(self: nn.Module, *args: Any, last: int = last, count: Any = count, **kwargs: Any) -> Any:
            return fail() if next(count) == last else register(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "register_forward_pre_hook", failing)
            with pytest.raises(PlannedError), prune(model, STRATEGIES[site]):
                pass
        assert traces(model) == before
    with prune(model, STRATEGIES[site]) as record:
        model.generate(**make_inputs(ROWS), max_new_tokens=1)
    assert len(record.images) == 3


def test_nesting_and_re_entry() -> None:
    model, make_inputs = tiny()
    other, _ = tiny("eager")
    inputs = make_inputs(ROWS)
    context = prune(model, ByContent())
    early = prune(model, KeepAll())  # made before, opened later: it must see the plain model then
    with context as record, prune(other, KeepAll()) as second:  # contexts on two models nest
        late = prune(model, KeepAll())
        with pytest.raises(RuntimeError, match="being pruned already"), late:
            pass
        with pytest.raises(RuntimeError, match="can be opened once"), context:
            pass
        model.generate(**inputs, max_new_tokens=1)
        other.generate(**inputs, max_new_tokens=1)
    with pytest.raises(RuntimeError, match="can be opened once"), context:
        pass
    assert len(record.images) == len(second.images) == 3
    plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for again in (early, late):  # one that was refused can be opened when the model is free
        with again as third:
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), plain)
        assert third.kept_share == 1.0


def test_a_model_that_shares_its_body_is_the_same_model() -> None:
    model, _ = tiny_llava(4)
    twin = copy.copy(model)
    with prune(model, ByContent()), pytest.raises(RuntimeError, match="being pruned already"), prune(twin, ByContent()):
        pass


def test_two_models_in_two_threads_each_with_its_own_context() -> None:
    """Opened, used and closed at the same time, many times over; each gives what it gives alone."""
    work = []
    for attention, site in (("sdpa", "signals"), ("eager", "projector")):
        model, make_inputs = tiny(attention)
        inputs = make_inputs(ROWS)
        with prune(model, STRATEGIES[site]):
            work.append((model, inputs, site, model.generate(**inputs, max_new_tokens=3, do_sample=False)))
    wrong: list[Any] = []
    start = threading.Barrier(2)

    def run(model: Any, inputs: Any, site: str, alone: torch.Tensor) -> None:
        start.wait()
        for _ in range(5):
            with prune(model, STRATEGIES[site]) as record:
                output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            if not torch.equal(output, alone) or len(record.images) != 3:
                wrong.append(record)

    threads = [threading.Thread(target=run, args=arguments) for arguments in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
