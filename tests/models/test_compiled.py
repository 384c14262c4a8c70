"""`torch.compile` around a model, in it, and around code that calls it: pruned as without, and no choice is traced."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import get_compilation_metrics
from transformers import CompileConfig

import tokenprune
from tests.models.decoder_oracle import Attended
from tests.models.family_oracle import BATCHES
from tests.models.oracle import ByContent, traces
from tokenprune import Choice, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.models import Record
from tokenprune.testing import tiny_model

traced: list[bool] = []

# What dynamo has to say about tracing transformers' own code is not about the pruning.
pytestmark = pytest.mark.filterwarnings(*(f"ignore:.*:{kind}Warning" for kind in ("User", "Future", "Deprecation")))


@method("traced", register=False)
class Traced(ByContent):
    """Notes whether it is being traced."""

    def choose(self, tokens: Tokens) -> Choice:
        traced.append(torch.compiler.is_compiling())
        return super().choose(tokens)


@method("traced_inside", register=False)
class TracedInside(Attended):
    """The same inside the language model."""

    def choose(self, tokens: Tokens) -> Choice:
        traced.append(torch.compiler.is_compiling())
        return super().choose(tokens)


LAYERS = 3
SITES: dict[str, PruningStrategy] = {"before": Traced(), "inside": TracedInside(layer=2)}


def whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def the_base_model(model: Any) -> Any:
    model.model.compile(backend="eager")
    return model


def the_language_model(model: Any) -> Any:
    model.model.language_model.compile(backend="eager")
    return model


def each_layer(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


def with_autograd(model: Any) -> Any:
    return torch.compile(model, backend="aot_eager")


WAYS: list[Callable[[Any], Any]] = [
    whole,
    in_place,
    the_base_model,
    the_language_model,
    each_layer,
    with_autograd,
]
CASES = [
    pytest.param(family, way, site, id=f"{family}-{way.__name__}-{site}", marks=() if always else pytest.mark.matrix)
    for family in ("llava", "qwen3_vl")
    for way in WAYS
    for site in SITES
    for always in [family == "llava" and (way, site) in ((whole, "before"), (the_language_model, "inside"))]
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Graphs of other tests are forgotten, and those of this one afterwards."""
    torch.compiler.reset()
    traced.clear()
    yield
    torch.compiler.reset()


def calls(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Logits of a forward and of each step of a generate."""
    with torch.no_grad():
        settings: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "output_logits": True}
        output = model.generate(**inputs, **settings, return_dict_in_generate=True)
        return [model(**inputs).logits, *output.logits]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    assert [a.shape for a in found] == [b.shape for b in expected]
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def kept(record: Record) -> list[list[int]]:
    return [image.indices.tolist() for image in record.images]


def frames_of_ours() -> set[str]:
    """Functions of this package that became part of a graph."""
    package = Path(tokenprune.__file__).parent
    found = {
        metrics.co_name
        for metrics in get_compilation_metrics()
        if metrics.co_filename and Path(metrics.co_filename).is_relative_to(package)
    }
    return {str(name) for name in found} - {"forward"}  # that of models/compiled.py only calls the module's own


@pytest.mark.parametrize(("family", "way", "site"), CASES)
def test_compiled_is_pruned_like_eager(family: str, way: Callable[[Any], Any], site: str) -> None:
    """Compiled before the context is opened, then within, then without it again, then in another context."""
    plain, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    dense = calls(plain, inputs)
    with prune(plain, SITES[site]) as told:
        pruned = calls(plain, inputs)
    model, _ = tiny_model(family, layers=LAYERS)
    compiled = way(model)
    assert worst(calls(compiled, inputs), dense) <= 1e-5
    before = traces(model)
    traced.clear()
    for owner in (compiled, model):
        with prune(owner, SITES[site]) as record:
            found = calls(compiled, inputs)
        assert worst(found, pruned) <= 1e-5
        assert kept(record) == kept(told)
        assert worst(calls(compiled, inputs), dense) <= 1e-5
    assert traced
    assert not any(traced), "a choice was traced, and its tracing timed"
    assert not frames_of_ours()
    assert traces(model) == before


def test_contexts_one_after_another_do_not_meet_in_a_graph() -> None:
    plain, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    compiled = the_language_model(tiny_model("llava", layers=LAYERS)[0])
    for strategy in (Attended(layer=2), ByContent(seed=1) >> Attended(layer=1), Attended(layer=2)):
        with torch.no_grad(), prune(plain, strategy) as told:
            expected = plain(**inputs).logits
        with torch.no_grad(), prune(compiled, strategy) as record:
            found = compiled(**inputs).logits
        assert worst([found], [expected]) <= 1e-5
        assert kept(record) == kept(told)


@pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=pytest.mark.matrix) for f in ("internvl", "paligemma", "gemma3"))]
)
def test_one_graph_of_the_callers_code_does_not_go_past_the_context(family: str) -> None:
    """A graph that was made before does not look whether there are hooks: it would answer from the whole prompt."""
    model, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))

    def step(inputs: dict[str, Any]) -> Tensor:
        logits: Tensor = model(**inputs).logits
        return logits * 2

    with torch.no_grad(), torch._dynamo.config.patch(capture_scalar_outputs=True):
        dense = step(inputs)
        with prune(model, Traced()) as told:
            expected = step(inputs)
        compiled = torch.compile(step, backend="eager")
        assert torch.equal(compiled(inputs), dense)
        for _ in range(2):
            with prune(model, Traced()) as record:
                found = compiled(inputs)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-5
            assert kept(record) == kept(told)
            assert torch.equal(compiled(inputs), dense)
    assert not any(traced)


def test_one_graph_for_everything_is_refused_with_the_reason() -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))

    @torch.compile(backend="eager", fullgraph=True)
    def step(inputs: dict[str, Any]) -> Any:
        return model(**inputs).logits

    with torch.no_grad(), torch._dynamo.config.patch(capture_scalar_outputs=True), prune(model, ByContent()) as record:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="tokenprune chooses tokens in plain Python"):
            step(inputs)
        assert record.images == []


def test_generate_still_compiles_its_steps_into_one_graph() -> None:
    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    graphs: list[Any] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    config: Any = CompileConfig(backend=backend, fullgraph=True)
    config.mode = None
    for strategy in (ByContent(), ByContent(seed=1)):
        with prune(model, strategy):
            expected = model.generate(**inputs, **settings, disable_compile=True)
            vars(model)["_valid_auto_compile_criteria"] = lambda *args: True
            try:
                found = model.generate(**inputs, **settings, compile_config=config)
            finally:
                del vars(model)["_valid_auto_compile_criteria"]
        assert torch.equal(found, expected)
    assert 1 <= len(graphs) <= 2
