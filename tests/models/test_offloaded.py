"""Weights that are elsewhere until a module runs, or stored in 8 bits: pruned like the plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn

from tests.models.decoder_oracle import Attended
from tests.models.family_oracle import BATCHES, LAYERS
from tests.models.oracle import ByContent
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import ToMe
from tokenprune.models import Record, prune_inputs
from tokenprune.testing import tiny_families, tiny_model

KINDS = ("llava", "llava_next", "llava_onevision", "qwen3_vl")  # the second and third have a newline token of their own
SITES: dict[str, PruningStrategy] = {"before": ByContent(), "inside": Attended(layer=2), "tower": ToMe(5)}


def to_the_cpu(model: Any, folder: Path) -> None:
    cpu_offload(model, execution_device="cpu")


def to_the_disk(model: Any, folder: Path) -> None:
    places: dict[str, str | int] = {"model": "cpu", "lm_head": "disk"}
    dispatch_model(model, device_map=places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def all_to_the_disk(model: Any, folder: Path) -> None:
    disk_offload(model, str(folder), execution_device="cpu")


CASES = [
    pytest.param(f, how, site, id=f"{f}-{how.__name__}-{site}", marks=() if always else pytest.mark.matrix)
    for f in tiny_families()
    for how in (to_the_cpu, to_the_disk, all_to_the_disk)
    for site in SITES
    for always in [f in KINDS and how is to_the_cpu]
    if site != "tower" or f == "llava"
    if site != "inside" or f != "gemma3"
    if f not in ("internvl", "paligemma", "gemma3") or how is not to_the_disk  # whose head is their embedding
    if f != "idefics3" or how is to_the_disk  # its own code needs some of its weights, without pruning too
]


def calls(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Logits of a forward and of each step of a generate."""
    with torch.no_grad():
        settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
        output = model.generate(**inputs, **settings, return_dict_in_generate=True)
        return [model(**inputs).logits, *output.logits]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def kept(record: Record) -> list[list[int]]:
    return [image.indices.tolist() for image in record.images]


@pytest.mark.parametrize(("family", "how", "site"), CASES)
def test_offloaded_weights(family: str, how: Any, site: str, tmp_path: Path) -> None:
    plain, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    with prune(plain, SITES[site]) as told:
        expected = calls(plain, inputs)
    model, _ = tiny_model(family, layers=LAYERS)
    how(model, tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        dense = model(**inputs).logits  # transformers' own generate misses the newline token's weights
    with prune(model, SITES[site]) as record:
        found = calls(model, inputs)
    assert worst(found, expected) <= 1e-6
    assert kept(record) == kept(told)
    assert record.kept_share < 1
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, dense)
    assert any(parameter.is_meta for parameter in model.parameters()), "weights stayed where they had been brought"


class Int8Linear(nn.Module):
    """What 8-bit packages put in place of a linear layer: integers and a scale per row, no float `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("rows", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def weights(self) -> Tensor:
        """The weights in float."""
        return self.get_buffer("rows").to(self.get_buffer("scale").dtype) * self.get_buffer("scale")

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weights().to(x.dtype), self.bias)


def linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers but the head, with their place."""
    return [
        (module, name, child)
        for path, module in model.named_modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and name != "lm_head"
    ]


IN_8_BITS = [
    pytest.param(f, site, marks=() if f == "llava" else pytest.mark.matrix)
    for f in tiny_families()
    for site in SITES
    if site != "tower" or f == "llava"
    if site != "inside" or f != "gemma3"
]


@pytest.mark.parametrize(("family", "site"), IN_8_BITS)
def test_weights_in_8_bits(family: str, site: str) -> None:
    model, make_inputs = tiny_model(family, layers=LAYERS)
    rounded, _ = tiny_model(family, layers=LAYERS)
    inputs = dict(make_inputs(BATCHES["padded"]))
    for (parent, name, linear), (_, _, same) in zip(linears(model), linears(rounded), strict=True):
        small = Int8Linear(linear)
        setattr(parent, name, small)
        same.weight.data = small.weights()
    with prune(rounded, SITES[site]) as told:
        expected = calls(rounded, inputs)
    with prune(model, SITES[site]) as record:
        found = calls(model, inputs)
    assert worst(found, expected) <= 1e-5
    assert kept(record) == kept(told)
    assert record.kept_share < 1


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_linear_layers_quantised_by_torch() -> None:
    """They scale by all tokens of a call: what is compared is the model on the same pruned prompt."""
    from torch.ao.quantization import quantize_dynamic

    model, make_inputs = tiny_model("llava", layers=LAYERS)
    inputs: dict[str, Any] = dict(make_inputs(BATCHES["padded"]))
    small = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in small.modules())
    pruned = prune_inputs(small, ByContent(), **inputs)
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    expected = small.generate(**pruned, **settings, return_dict_in_generate=True)
    with prune(small, ByContent()) as record:
        found = small.generate(**inputs, **settings, return_dict_in_generate=True)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    assert record.kept_share < 1
    with prune(small, Attended(layer=2)) as record:
        assert small(**inputs).logits.isfinite().all()
    assert record.kept_share < 1
