"""Models inside wrappers: calls of wrapper and model are pruned alike, or the error says what to pass."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.models.decoder_oracle import Attended
from tests.models.family_oracle import BATCHES, LAYERS
from tests.models.oracle import ByContent, traces
from tokenprune import PruningStrategy, prune
from tokenprune.evaluate.doctor import diagnose_model
from tokenprune.models import Record, UnsupportedError, adapter_for, prune_inputs
from tokenprune.models.wrapped.unwrap import unwrap
from tokenprune.testing import tiny_families, tiny_model

# One family of each kind in the normal suite, all of them in the matrix.
KINDS = ("llava", "llava_next", "qwen3_vl", "idefics3", "gemma3")
SITES: dict[str, PruningStrategy] = {"before": ByContent(), "inside": Attended(layer=2)}
CASES = [
    pytest.param(family, site, marks=() if family in KINDS else pytest.mark.matrix)
    for family in tiny_families()
    for site in SITES
    if site == "before" or family != "gemma3"  # whose layers cannot be pruned
]
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"}


def with_adapter(model: nn.Module, config: Any = None) -> Any:
    """The model with a LoRA of random weights, or with what a config says."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for a name that transformers will drop
        torch.manual_seed(3)
        return peft.get_peft_model(model, config or peft.LoraConfig(target_modules=["q_proj", "v_proj"], **LORA)).eval()


def lora(family: str) -> tuple[Any, Any, dict[str, Any]]:
    """A wrapper, an unwrapped model with the same weights, and a batch."""
    model, make_inputs = tiny_model(family, layers=LAYERS)
    wrapper = with_adapter(model)
    return wrapper, copy.deepcopy(wrapper).merge_and_unload(), dict(make_inputs(BATCHES["padded"]))


def outcome(owner: Any, called: Any, inputs: dict[str, Any], strategy: PruningStrategy) -> tuple[list[Tensor], Record]:
    """Logits of a forward, and of each step of a generate where there is one, with the context opened on `owner`."""
    with torch.no_grad(), prune(owner, strategy) as record:
        logits = [called(**inputs).logits]
        if hasattr(called, "generate"):
            logits.extend(called.generate(**inputs, **SETTINGS).logits)
    assert len(record.calls) == 1 + hasattr(called, "generate")
    assert record.kept_share < 1
    return logits, record


def kept(record: Record) -> list[list[int]]:
    return [image.indices.tolist() for image in record.images]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("family", "site"), CASES)
def test_a_lora_is_pruned_like_the_merged_model(family: str, site: str) -> None:
    wrapper, merged, inputs = lora(family)
    inner = wrapper.get_base_model()
    with torch.no_grad():
        plain = tiny_model(family, layers=LAYERS)[0](**inputs).logits
        dense = wrapper(**inputs).logits
    assert (dense - plain).abs().max() > 1e-2, "the LoRA changes nothing"
    before = traces(inner)  # peft itself leaves a method on its own part
    expected, told = outcome(merged, merged, inputs, SITES[site])
    found, record = outcome(wrapper, wrapper, inputs, SITES[site])
    assert worst(found, expected) <= 2e-5
    assert kept(record) == kept(told)
    for owner, called in ((wrapper, inner), (inner, wrapper), (wrapper.base_model, wrapper)):
        other, record = outcome(owner, called, inputs, SITES[site])
        assert all(torch.equal(a, b) for a, b in zip(other, found, strict=True))
        assert kept(record) == kept(told)
    assert traces(inner) == before
    with torch.no_grad():
        assert torch.equal(wrapper(**inputs).logits, dense)


@pytest.mark.parametrize(
    "where",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 6]}},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "task_type": None},
    ],
    ids=str,
)
def test_wherever_the_adapter_is(where: dict[str, Any]) -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    wrapper = with_adapter(model, peft.LoraConfig(**{**LORA, **where}))
    merged = copy.deepcopy(wrapper).merge_and_unload()
    for strategy in SITES.values():
        expected, told = outcome(merged, merged, inputs, strategy)
        found, record = outcome(wrapper, wrapper, inputs, strategy)
        assert worst(found, expected) <= 5e-5
        assert kept(record) == kept(told)


def test_an_adapter_that_is_switched_off_is_not_there() -> None:
    wrapper, _, inputs = lora("llava")
    plain = tiny_model("llava", layers=LAYERS)[0]
    expected, _ = outcome(plain, plain, inputs, SITES["before"])
    with wrapper.disable_adapter():
        assert worst(outcome(wrapper, wrapper, inputs, SITES["before"])[0], expected) <= 1e-6


def test_the_pure_function_takes_wrappers() -> None:
    wrapper, _, inputs = lora("llava")
    with torch.no_grad():
        output = wrapper.generate(**prune_inputs(wrapper, ByContent(), **inputs), **SETTINGS)
    expected, _ = outcome(wrapper, wrapper, inputs, ByContent())
    assert all(torch.equal(a, b) for a, b in zip(output.logits, expected[1:], strict=True))


def test_wrapper_and_model_inside_are_one_model() -> None:
    wrapper, _, inputs = lora("llava")
    compiled = torch.compile(wrapper, backend="eager")
    models = [wrapper, wrapper.base_model, wrapper.get_base_model(), compiled]
    for first in models:
        for second in models:
            with (
                prune(first, ByContent()),
                pytest.raises(RuntimeError, match="being pruned already"),
                prune(second, ByContent()),
            ):
                pass
    outcome(wrapper, wrapper, inputs, ByContent())


PAST: dict[str, Any] = {
    "the class's generate": lambda m, i: type(m).generate(m, **i, max_new_tokens=2),
    "forward without call": lambda m, i: m.forward(**i),
    "the base model": lambda m, i: m.model(**i),
    "features": lambda m, i: m.model.get_image_features(i["pixel_values"]),
}


@pytest.mark.parametrize("way", PAST)
def test_what_gets_past_is_an_error_inside_a_wrapper_too(way: str) -> None:
    wrapper, _, inputs = lora("llava")
    with prune(wrapper, ByContent()) as record, pytest.raises((RuntimeError, UnsupportedError), match="prune"):
        PAST[way](wrapper.get_base_model(), inputs)
    assert record.images == []


@pytest.mark.filterwarnings("ignore:Token type ids are not supported:UserWarning")  # peft's, before ours
@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_virtual_tokens_are_refused(family: str, kind: Any) -> None:
    model, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = make_inputs(BATCHES["one row"])
    wrapper = with_adapter(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    inner = wrapper.get_base_model()
    with pytest.raises(UnsupportedError, match="virtual tokens"):
        prune(wrapper, ByContent())
    for call in (lambda: wrapper.generate(**inputs, max_new_tokens=2), lambda: wrapper(**inputs)):
        with pytest.raises((RuntimeError, ValueError), match="prune"), prune(inner, ByContent()) as record:
            call()
        assert record.images == []


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(site: str) -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    plain = tiny_model("llava", layers=LAYERS)[0]
    with prune(plain, SITES[site]) as told:
        expected = plain(**inputs).logits
    expected.square().mean().backward()
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)  # LLaVA leaves out layers of its tower
    for owner in (wrapper, model):
        model.zero_grad()
        with prune(owner, SITES[site]) as record:
            found = wrapper(**inputs).logits
        found.square().mean().backward()
        assert torch.equal(found, expected)
        assert kept(record) == kept(told)
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            assert mine.grad is None or theirs.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-6)
    with prune(wrapper, SITES[site]) as record:
        wrapper.module.generate(**inputs, max_new_tokens=2)
        assert not hasattr(wrapper, "generate")
    assert kept(record) == kept(told)


@pytest.mark.usefixtures("process_group")
def test_wrappers_around_wrappers() -> None:
    wrapper, _, inputs = lora("llava")
    expected, told = outcome(wrapper, wrapper, inputs, ByContent())
    outer = DistributedDataParallel(wrapper, find_unused_parameters=True)
    assert unwrap(outer) is unwrap(torch.compile(outer, backend="eager")) is wrapper.get_base_model()
    found, record = outcome(outer, outer, inputs, ByContent())
    assert torch.equal(found[0], expected[0])
    assert kept(record) == kept(told)[: len(record.images)]


def test_data_parallel_on_one_device_and_on_several() -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    expected, _ = outcome(model, model, inputs, ByContent())
    wrapper: Any = nn.DataParallel(model)
    wrapper.device_ids = []  # as on a machine without accelerators
    assert torch.equal(outcome(wrapper, wrapper, inputs, ByContent())[0][0], expected[0])
    wrapper.device_ids = [0, 1]
    with pytest.raises(UnsupportedError, match=r"DataParallel on 2 devices.*wrapper\.module"):
        prune(wrapper, ByContent())
    with prune(model, ByContent()) as record:
        replica = model._replicate_for_data_parallel()
        with pytest.raises(RuntimeError, match="a copy of the model was called"):
            replica(**inputs)
    assert record.images == []


class Holder(nn.Module):
    """A wrapper that nobody knows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({"vlm": model})

    def forward(self, **inputs: Any) -> Any:
        return self.inside["vlm"](**inputs)


def test_an_unknown_wrapper_is_refused_with_the_way_to_the_model_inside() -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    holder: Any = Holder(model)
    for refused in (lambda: prune(holder, ByContent()), lambda: adapter_for(holder)):
        with pytest.raises(TypeError, match=r"got Holder; the model inside is its attribute 'inside\.vlm'"):
            refused()
    holder.config = model.config  # such as wrappers for reinforcement learning have
    with pytest.raises(TypeError, match=r"'inside\.vlm'"):
        prune(holder, ByContent())
    with torch.no_grad(), prune(model, ByContent()) as record:
        holder(**make_inputs(BATCHES["one row"]))
    assert len(record.images) == 1


def test_doctor_examines_wrappers() -> None:
    wrapper = with_adapter(tiny_model("llava", layers=4)[0])
    _, make_inputs = tiny_model("llava", layers=4)

    def make(questions: Any) -> Any:
        return make_inputs([f"look at <0> {question}" for question in questions])

    parallel: Any = nn.DataParallel(wrapper)
    parallel.device_ids = []
    for model in (wrapper, parallel):
        diagnosis = diagnose_model(model, make)
        assert [(c.name, c.detail) for c in diagnosis.checks if c.status != "ok"] == []
        assert diagnosis.model == "LlavaForConditionalGeneration"
