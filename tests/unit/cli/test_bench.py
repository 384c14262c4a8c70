"""`tokenprune bench` on a model of a few thousand weights: rows, files, resuming, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenprune import GreedyRepMax, repmax
from tokenprune.baselines import DivPrune
from tokenprune.cli.main import main
from tokenprune.evaluate.cost import DecoderShape, TowerShape, prefill_flops
from tokenprune.evaluate.cost.configs import find_config, random_prompts, visual_tokens
from tokenprune.evaluate.cost.model_bench import ModelBench, Setup, compared
from tokenprune.evaluate.cost.results_file import ResultsFile, read_rows
from tokenprune.evaluate.cost.roofline import Roofline
from tokenprune.evaluate.cost.selection_bench import Size, plain_loop, random_images
from tokenprune.testing import tiny_llava, tiny_model

BOUNDS = ["--peak-tflops", "0.05", "--bandwidth-gbs", "5"]
ROOF = Roofline(flops=5e10, bandwidth=5e9, source="test")


@pytest.fixture
def config(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_llava()[0].config.save_pretrained(folder)
    return str(folder)


def bench_model(config: str, out: Path, *more: str) -> int:
    few = ["--batch", "2", "--keep", "4", "--new-tokens", "3", "--text-tokens", "6", "--repeats", "1", "--warmup", "0"]
    return main(["bench", "model", "--config", config, *few, *BOUNDS, "--out", str(out), *more])


def test_a_model_dense_against_pruned(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        bench_model(config, out, "--random-weights", "--strategy", "greedy_repmax", "--strategy", "fastv(layer=1)") == 0
    )
    rows = read_rows(out / "bench_model.csv")
    assert [row["strategy"] for row in rows] == ["dense", "greedy_repmax(keep=4)", "fastv(keep=4, layer=1)"]
    dense, pruned, inside = rows
    assert [float(row["tokens_in_decoder"]) for row in rows] == [16, 4, 10]
    # Two layers; two rows of 6 text, the kept tokens and the two fed ones, two key heads of width 8, float32.
    token = 2 * 2 * 8 * 4
    assert [int(row["kv_bytes"]) for row in rows] == [2 * 2 * (n + 8) * token for n in (16, 4, 10)]
    assert int(inside["kv_layer_bytes_most"]) == 2 * 24 * token
    assert int(inside["kv_layer_bytes_least"]) == 2 * 12 * token
    assert dense["selection_ms"] == dense["first_token_speedup"] == ""
    for row in (pruned, inside):
        parts = sum(float(row[f"{stage}_ms"]) for stage in ("vision", "selection", "prefill"))
        assert float(row["first_token_ms"]) == pytest.approx(parts, rel=1e-3)
        ratio = float(dense["first_token_ms"]) / float(row["first_token_ms"])
        assert float(row["first_token_speedup"]) == pytest.approx(ratio, rel=1e-3)
        assert row["pays_at_output"]
    assert float(pruned["prefill_gflop"]) < float(inside["prefill_gflop"]) < float(dense["prefill_gflop"])
    sweep = read_rows(out / "bench_break_even.csv")
    assert {row["strategy"] for row in sweep} == {"greedy_repmax(keep=0.111)", "fastv(keep=0.111, layer=1)"}
    for row in sweep:
        gain = float(row["dense_prefill_ms"]) - float(row["pruned_prefill_ms"]) - float(row["selection_ms"])
        assert float(row["gain_ms"]) == pytest.approx(gain, abs=0.02)
    facts = json.loads((out / "bench_model.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"]
    assert facts["roofline"]["flops"] == 5e10
    text = capsys.readouterr().out
    assert "Pays at" in text
    assert "bench_break_even.csv" in text


def test_rows_that_are_there_are_not_measured_again(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls: list[Any] = []
    measure = ModelBench.measure

    def counted(self: ModelBench, batch: int, strategy: Any) -> dict[str, Any]:
        calls.append((batch, strategy))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, batch, strategy)

    monkeypatch.setattr(ModelBench, "measure", counted)
    assert bench_model(config, out, "--no-sweep") == 130
    assert [row["strategy"] for row in read_rows(out / "bench_model.csv")] == ["dense"]
    assert bench_model(config, out, "--no-sweep") == 0
    assert [batch for batch, _ in calls] == [2, 2, 2]  # dense once
    before = (out / "bench_model.csv").read_bytes()
    assert bench_model(config, out, "--no-sweep") == 0
    assert len(calls) == 3
    assert (out / "bench_model.csv").read_bytes() == before
    assert bench_model(config, out, "--no-sweep", "--fresh") == 0
    assert len(calls) == 5


def test_rows_of_other_code_are_measured_again(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "x.csv", ("a",))
    file.add({"a": 1, "b": 0.123456789})
    assert ResultsFile(tmp_path / "x.csv", ("a",)).find(a=1) is not None
    file.stamp["code"] = "other"
    assert file.find(a=1) is None
    file.add({"a": 1, "b": 2})
    assert [(row["a"], row["b"], row["code"]) for row in file.rows] == [("1", "2", "other")]
    again = ResultsFile(tmp_path / "x.csv", ("a",), fresh=True)
    again.stamp["code"] = "other"
    assert again.find(a=1) is None
    again.add({"a": 2, "b": 3})
    again.add({"a": 1, "b": 4})
    assert [(row["a"], row["b"]) for row in again.rows] == [("2", "3"), ("1", "4")]
    assert again.find(a=1) is not None


def test_what_pruning_wins() -> None:
    dense = {"first_token_ms": 100.0, "decode_step_ms": 5.0}
    row = {"first_token_ms": "80", "decode_step_ms": "4", "selection_ms": "10", "prefill_ms": "40"}
    found = compared(row, dense)
    assert found["first_token_speedup"] == 1.25
    assert found["selection_share_of_prefill"] == 0.25
    assert found["pays_at_output"] == "1 or more"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "nowhere"], "--config must be one of"),
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
        (["--compile"], "--compile needs --static-cache"),
        (["--keep", "x"], "--keep must be like 64"),
        (["--new-tokens", "1"], "new must be 2 or more"),
        (["--peak-tflops", "0"], "--peak-tflops must be positive"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model", *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_static_and_compiled_decoding_choose_the_same_tokens() -> None:
    config = tiny_llava()[0].config
    setup = {"config": config, "device": torch.device("cpu"), "dtype": torch.float32, "text": 6, "new": 4}
    chosen = []
    for more in ({}, {"static": True}, {"static": True, "backend": "eager"}):
        bench = ModelBench(Setup(**setup, repeats=1, warmup=0, **more), ROOF)
        vision, _, _ = bench._see(1, None)
        torch.manual_seed(0)
        inputs = random_prompts(config, vision.counts, 6, device=torch.device("cpu"))
        chosen.append(bench._run(inputs, vision, GreedyRepMax(4)).new)
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])
    with pytest.raises(ValueError, match="needs static=True"):
        Setup(**setup, backend="eager")


def test_a_static_cache_of_the_dense_run_is_not_used_for_the_pruned_one() -> None:
    config = tiny_llava()[0].config
    setup = Setup(
        config=config, device=torch.device("cpu"), dtype=torch.float32, text=6, new=4, repeats=1, warmup=0, static=True
    )
    bench = ModelBench(setup, ROOF)
    dense, pruned = bench.measure(1, None), bench.measure(1, GreedyRepMax(4))
    assert pruned["kv_bytes"] < dense["kv_bytes"]


def test_selection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "20:5:8:2", "--size", "12:12:8:1", "--strategy", "greedy_repmax", "--seconds", "0.01"]
    assert main(["bench", "selection", *options, *BOUNDS, "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_selection.csv")
    methods = ["matrix product", "plain loop"]
    assert [row["method"] for row in rows] == [*methods, "greedy_repmax(keep=5)", *methods, "greedy_repmax(keep=12)"]
    product, _, greedy = rows[:3]
    assert float(greedy["times_product"]) == pytest.approx(float(greedy["ms"]) / float(product["ms"]), rel=1e-3)
    assert greedy["single_ms"]
    assert "x product" in capsys.readouterr().out
    before = (tmp_path / "bench_selection.csv").read_bytes()
    assert main(["bench", "selection", *options, *BOUNDS, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "bench_selection.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "5:6:1:1"], "1 <= k <= n"),
        (["--size", "5:6"], "--size must be n:k:d:batch"),
        (["--strategy", "fastv"], "needs Tokens.decoder_attention"),
        (["--strategy", "fastervlm"], "needs Tokens.cls_attention"),
        (["--seconds", "0"], "--seconds must be positive"),
    ],
)
def test_selection_refusals(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "selection", *options, *BOUNDS, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_plain_loop_chooses_what_the_strategy_chooses() -> None:
    for seed, tokens in enumerate(
        random_images(Size(n=40, k=9, d=6, batch=3), dtype=torch.float64, device=torch.device("cpu"))
    ):
        loop = plain_loop(tokens.visual, 9)
        assert loop.sort().values.tolist() == GreedyRepMax(9).select(tokens).indices.sort().values.tolist(), seed
        assert set(loop.tolist()) == set(repmax.greedy_repmax(tokens.visual.numpy(), 9).tolist())
        assert DivPrune(9).select(tokens).kept == 9


def test_llava_next_with_its_tiles_and_newlines(tmp_path: Path) -> None:
    config = tiny_model("llava_next")[0].config
    config.save_pretrained(tmp_path / "model")
    assert bench_model(str(tmp_path / "model"), tmp_path / "out", "--strategy", "greedy_repmax", "--no-sweep") == 0
    dense, pruned = read_rows(tmp_path / "out" / "bench_model.csv")
    # Sixteen tokens of the whole picture, eight rows of eight with a newline each; four kept.
    assert float(dense["tokens_in_decoder"]) == visual_tokens(config) == 16 + 8 * 9
    assert float(pruned["tokens_in_decoder"]) == 4
    gflop = (
        prefill_flops(DecoderShape.of(config), [6 + 88] * 2, rows=2, tower=TowerShape.of(config), pictures=10).tower
        / 1e9
    )
    assert float(dense["tower_gflop"]) == pytest.approx(gflop, rel=1e-4)
    assert find_config("llava-next-7b").model_type == "llava_next"


def test_memory_that_runs_out_is_told_with_what_is_kept(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = ModelBench.measure

    def full(self: ModelBench, batch: int, strategy: Any) -> dict[str, Any]:
        if strategy is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return measure(self, batch, strategy)

    monkeypatch.setattr(ModelBench, "measure", full)
    assert bench_model(config, tmp_path / "out", "--no-sweep") == 2
    assert "ran out of memory (CUDA out of memory. Tried to allocate 2 GiB); the rows" in capsys.readouterr().err
    assert [row["strategy"] for row in read_rows(tmp_path / "out" / "bench_model.csv")] == ["dense"]
