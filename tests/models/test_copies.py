"""Copies of a model inside a context are refused; its weights can be saved; records can be copied and pickled."""

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.models.oracle import BATCHES, ByContent, tiny, traces
from tests.models.sites import sites
from tokenprune import PruningStrategy, Record, prune
from tokenprune.baselines import FastV
from tokenprune.testing import tiny_llava

ROWS = BATCHES["padded"]
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a list": lambda model: copy.deepcopy([model]),
    "deepcopy of the attributes": lambda model: copy.deepcopy(vars(model)),
    "deepcopy of the model without head": lambda model: copy.deepcopy(model.model),
    "deepcopy of the tower": lambda model: copy.deepcopy(model.model.vision_tower),
    "pickle": pickle.dumps,
    "pickle of the tower": lambda model: pickle.dumps(model.model.vision_tower),
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "torch.save in a dictionary": lambda model: torch.save({"model": model}, io.BytesIO()),
}


def error_of(how: str, model: Any) -> str:
    """transformers itself puts hooks on a model that has once been asked for hidden states, which cannot be pickled."""
    try:
        COPIES[how](model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("strategy", sites("llava").values(), ids=sites("llava"))
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_inside_is_refused_and_works_afterwards(how: str, strategy: PruningStrategy) -> None:
    model, make_inputs = tiny_llava(4, layers=4)
    inputs = make_inputs(ROWS)
    dense = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    plain = error_of(how, model)
    with prune(model, strategy) as record:
        expected = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        before = traces(model)
        with pytest.raises(RuntimeError, match=r"Leave the prune context first.*state_dict\(\).*save_pretrained"):
            COPIES[how](model)
        assert traces(model) == before
        assert torch.equal(model.generate(**inputs, max_new_tokens=2, do_sample=False), expected)
    assert len(record.calls) == 2
    assert "__reduce_ex__" not in vars(model)
    assert error_of(how, model) == plain
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(**inputs, max_new_tokens=2, do_sample=False), dense)
    with prune(twin, strategy):
        assert torch.equal(twin.generate(**inputs, max_new_tokens=2, do_sample=False), expected)


def test_a_layer_inside_the_decoder() -> None:
    model, _ = tiny_llava(4, layers=4)
    layer = model.model.language_model.layers[2]
    with prune(model, sites("llava")["within a layer"]):
        for part in (layer, layer.mlp):
            with pytest.raises(RuntimeError, match="Leave the prune context first"):
                copy.deepcopy(part)
    copy.deepcopy(layer)


@pytest.mark.filterwarnings("ignore:Moving the following attributes in the config")
@pytest.mark.parametrize("strategy", [ByContent(), FastV(3, layer=1)], ids=repr)
def test_weights_can_be_saved_inside(strategy: PruningStrategy) -> None:
    model, _ = tiny()
    file = io.BytesIO()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with prune(model, strategy), tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), file)
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder)
    file.seek(0)
    for found in (torch.load(file), again.state_dict()):
        assert list(found) == list(weights)
        assert all(torch.equal(value, weights[name]) for name, value in found.items())


COPIED: dict[str, Callable[[Record], Record]] = {
    "pickle": lambda record: pickle.loads(pickle.dumps(record)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIED)
def test_a_record_is_copied_as_it_was(how: str) -> None:
    """Inside and after the context; what comes later is in the original alone."""
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, FastV(3, layer=1)) as record:
        model.generate(**inputs, max_new_tokens=1)
        model(**make_inputs(["only words"]))
        early, then = COPIED[how](record), record.to_dict()
        model.generate(**inputs, max_new_tokens=1)
    late = COPIED[how](record)
    assert early.to_dict() == then
    assert late.to_dict() == record.to_dict() != then
    assert repr(late) == repr(record)
    assert late.strategy == record.strategy
    assert [image.indices.tolist() for image in late.images] == [image.indices.tolist() for image in record.images]
    late.add_plain("generate", (1, 5))
    assert len(late.calls) == len(record.calls) + 1 == 4
