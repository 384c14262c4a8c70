"""On a GPU: counters against formulas, the allocator's peak, caches, the benchmarks themselves. No time is judged."""

from pathlib import Path

import pytest
import torch

from tests.models.decoder_oracle import InDecoder
from tests.models.oracle import BATCHES, ByContent
from tokenprune import PruningStrategy
from tokenprune.cli.main import main
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.evaluate.answer import answer_timed
from tokenprune.evaluate.cost import (
    DecoderShape,
    cache_layers,
    counted_flops,
    disagreement,
    peak_memory,
    prefill_flops,
    time_call,
)
from tokenprune.evaluate.cost.counted import TOLERANCE
from tokenprune.evaluate.cost.memory import ALLOCATOR
from tokenprune.evaluate.cost.results_file import read_rows
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_llava

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda:0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", [None, ByContent(), InDecoder()], ids=repr)
def test_formula_and_counter_agree(strategy: PruningStrategy | None, dtype: torch.dtype) -> None:
    model, make_inputs = tiny_llava(layers=4, dtype=dtype)
    model.cuda()
    inputs = {name: value.cuda() for name, value in make_inputs(BATCHES["padded"]).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    adapter = adapter_for(model)
    with torch.no_grad():
        vision = adapter.encode(inputs, {IMAGE_KEY})
    ran = answer_timed(adapter, inputs, vision, strategy, max_new_tokens=1)
    counted = counted_flops(lambda: answer_timed(adapter, inputs, vision, strategy, max_new_tokens=1))
    decoder, rows = DecoderShape.of(model.config), inputs["input_ids"].shape[0]
    formula = prefill_flops(decoder, ran.lengths, rows=rows, causal="full")
    assert disagreement(formula.layers + formula.attention, counted.of("language_model")) <= TOLERANCE
    per_token = decoder.kv_bytes(torch.empty(0, dtype=dtype).element_size())
    held = cache_layers(ran.cache)
    assert [layer.bytes for layer in held] == [rows * n * per_token for n in ran.lengths]


def test_the_allocator_has_the_peak() -> None:
    with peak_memory(GPU) as peak:
        torch.ones(2**20, device=GPU)
    assert peak.what == ALLOCATOR
    assert peak.above is not None
    assert peak.total is not None
    assert 4 * 2**20 <= peak.above <= peak.total


def test_events_time_the_device() -> None:
    x = torch.randn(512, 512, device=GPU)
    found = time_call(lambda: x @ x, GPU, repeats=5)
    assert 0 < found.low <= found.median <= found.high


def test_a_run_on_the_device(tmp_path: Path) -> None:
    options = ["--config", "tiny", "--batch", "8", "--keep", "64", "--new-tokens", "8", "--repeats", "2"]
    assert main(["bench", "model", *options, "--device", "cuda", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_model.csv")
    assert [row["strategy"] for row in rows] == ["dense", "trim_tokenator(keep=64)"]
    assert all(row["dtype"] == "bfloat16" and row["peak_of"] == ALLOCATOR for row in rows)
    assert all(int(row["peak_bytes"]) > 0 for row in rows)
    assert int(rows[1]["kv_bytes"]) < int(rows[0]["kv_bytes"])


def test_compiled_decoding_is_measured(tmp_path: Path) -> None:
    options = ["--config", "tiny", "--batch", "1", "--keep", "64", "--new-tokens", "4", "--repeats", "1", "--no-sweep"]
    options += ["--static-cache", "--compile", "--device", "cuda", "--out", str(tmp_path)]
    assert main(["bench", "model", *options]) == 0
    assert {row["compiler"] for row in read_rows(tmp_path / "bench_model.csv")} == {"inductor"}


def test_selection_is_measured(tmp_path: Path) -> None:
    options = ["--size", "576:64:1024:4", "--seconds", "0.2", "--device", "cuda", "--out", str(tmp_path)]
    assert main(["bench", "selection", *options]) == 0
    assert len(read_rows(tmp_path / "bench_selection.csv")) == 7
