"""On a GPU: every decoding step's logits under pruning against the hand-made reference, in full and half precision."""

from typing import Any

import pytest
import torch

from tests.models.oracle import BATCHES, ByContent, KeepAll, named, of, reference_rows
from tokenprune import GreedyRepMax, PruningStrategy, prune
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_llava

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.cuda().to(dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()
    }


@pytest.fixture(autouse=True)
def exact_float32() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_equals_the_reference(dtype: torch.dtype, attention: str, positions: Any, batch: str) -> None:
    model, make_inputs = tiny_llava(attn_implementation=attention, dtype=dtype)
    model.cuda()
    inputs = on_gpu(make_inputs(BATCHES[batch]), dtype)
    with prune(model, ByContent(), positions=positions) as record:
        output = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    logits = torch.stack(output.logits, dim=1).float().cpu()
    fed = output.sequences[:, -4:].cpu()
    # bfloat16 has 8 bits: the two ways of computing may differ by some units in the last place of the largest logit.
    bound = 1e-4 if dtype == torch.float32 else 0.08 * float(logits.abs().max())
    for row, reference in enumerate(reference_rows(model, inputs, record, positions, steps=4, tokens=fed)):
        assert (logits[row] - reference.logits).abs().max() <= bound
    assert all(image.indices.device.type == "cpu" for image in record.images)
    assert record.select_seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keep_all_is_bit_identical(dtype: torch.dtype) -> None:
    model, make_inputs = tiny_llava(dtype=dtype)
    model.cuda()
    inputs = on_gpu(make_inputs(BATCHES["padded"]), dtype)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    plain = model.generate(**inputs, **settings, return_dict_in_generate=True)
    with prune(model, KeepAll()):
        same = model.generate(**inputs, **settings, return_dict_in_generate=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))


@pytest.mark.parametrize("strategy", [ByContent(), GreedyRepMax(5)], ids=repr)
def test_the_device_does_not_change_what_is_kept(strategy: PruningStrategy) -> None:
    kept = []
    for device in ("cpu", "cuda"):
        model, make_inputs = tiny_llava()
        model.to(device)
        inputs = {name: value.to(device) for name, value in make_inputs(BATCHES["two images"]).items()}
        with prune(model, strategy) as record:
            model.generate(**inputs, max_new_tokens=1)
        kept.append([image.indices.tolist() for image in record.images])
    assert kept[0] == kept[1]


def test_a_static_cache_with_compiled_decoding() -> None:
    model, make_inputs = tiny_llava()
    model.cuda()
    inputs = on_gpu(make_inputs(BATCHES["padded"]), torch.float32)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    with prune(model, ByContent()):
        dynamic = model.generate(**inputs, **settings)
        static = model.generate(**inputs, **settings, cache_implementation="static")
    assert torch.equal(dynamic, static)


def test_signals_equal_those_of_the_cpu() -> None:
    states = []
    for device in ("cpu", "cuda"):
        model, make_inputs = tiny_llava()
        model.to(device)
        pixels = make_inputs(["<0> and <1>"])["pixel_values"].to(device)
        want = named("cls_attention", "key")
        with torch.no_grad():
            states.append(adapter_for(model).encode({"pixel_values": pixels}, want))
    assert states[0].keys == states[1].keys
    assert of(states[0], "cls_attention") is not None
    assert of(states[1], "cls_attention") is not None
    for cpu, gpu in zip(of(states[0], "cls_attention"), of(states[1], "cls_attention"), strict=True):
        assert (cpu - gpu.cpu()).abs().max() <= 1e-5
