"""`tokenprune doctor`: healthy models, sick ones, and wrong arguments."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tests.models.oracle import tiny
from tokenprune.cli.main import main
from tokenprune.evaluate.doctor import CHECKS, diagnose_model
from tokenprune.models.decoder.run import DecoderRun
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.families.llava import LlavaAdapter
from tokenprune.models.prompt.pruned import PrunedPrompt
from tokenprune.models.record import Record
from tokenprune.testing import tiny_families

compact_module = import_module("tokenprune.models.prompt.pruned")  # the function of that name hides it


def questions(make_inputs: Any) -> Callable[[Any], Any]:
    return lambda asked: make_inputs([f"look at <0> {question}" for question in asked])


def test_the_bundled_model_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"]
    assert (told["name"], told["family"], told["visual_tokens"], told["layers"]) == ("bundled", "llava", 256, 4)
    assert [check["name"] for check in told["checks"]] == list(CHECKS)
    assert {check["status"] for check in told["checks"]} == {"ok"}
    assert all(check["difference"] < 1e-5 for check in told["checks"] if check["difference"] is not None)


@pytest.mark.parametrize("family", [family for family in tiny_families() if family != "llava"])
def test_every_family_is_healthy(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", family, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == family
    statuses = {check["name"]: check["status"] for check in told["checks"]}
    inside = {"ok"} if "decoder" in told["sites"] else {"unsupported"}
    assert statuses["inside the language model"] in inside | ({"unsupported"} if family == "gemma3" else set())
    assert "failed" not in statuses.values()
    assert statuses["decoding"] == "ok"
    assert statuses["before the language model"] == ("unsupported" if family == "gemma3" else "ok")


def test_other_backends_and_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", "llava", "--attn", "eager"]) == 0
    assert main(["doctor", "--config", "llava", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "attention eager" in out
    assert "bfloat16" in out
    assert out.count("everything that is supported works") == 2


def test_a_configuration_file_names_the_family_and_its_structure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32064)
    LlavaConfig(vision_config=CLIPVisionConfig(), text_config=text).save_pretrained(tmp_path)
    assert main(["doctor", "--config", str(tmp_path / "config.json")]) == 0
    assert "B parameters, 32 decoder layers, 12 attention modules in the tower; not built" in capsys.readouterr().out


right_positions = compact_module._positions


def wrong_positions(prompt: Any, source: Any, mask: Any, flags: Any, policy: Any) -> Any:
    positions, following = right_positions(prompt, source, mask, flags, policy)
    return positions * 2, following


@pytest.mark.parametrize(
    ("owner", "attribute", "sick", "failing"),
    [
        (compact_module, "_positions", wrong_positions, "before the language model"),
        (PrunedPrompt, "restore", lambda self, sequences: sequences, "decoding"),
        (DecoderRun, "selections", lambda self: list(self.before.selections), "inside the language model"),
        (Record, "add", lambda self, *args, **kwargs: None, "before the language model"),
        (LlavaAdapter, "encode", None, "before the language model"),
    ],
)
def test_a_defect_shows(owner: Any, attribute: str, sick: Any, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny()
    if sick is None:
        plain = LlavaAdapter.encode

        def sick(self: Adapter, inputs: Any, want: Any = frozenset()) -> Any:
            vision = plain(self, inputs, want)  # type: ignore[arg-type]
            return replace(vision, features=vision.features.roll(1, 0))

    monkeypatch.setattr(owner, attribute, sick)
    diagnosis = diagnose_model(model, questions(make_inputs))
    failed = [check.name for check in diagnosis.checks if check.status == "failed"]
    assert failing in failed
    assert not diagnosis.healthy


def test_a_sick_model_ends_with_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compact_module, "_positions", wrong_positions)
    assert main(["doctor", "--config", "llava"]) == 1
    out = capsys.readouterr().out
    assert "failed      before the language model: logits differ from a whole run" in out
    assert "failed: " in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nonsense"], "the family is 'nonsense', known are llava"),
        (["--model", "./nowhere"], "there is no nowhere/config.json"),
        (["--config", "llava", "--device", "cuda:77"], "cannot be used here"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_configurations_of_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    assert main(["doctor", "--config", str(tmp_path / "config.json")]) == 2
    assert "no model that turns images and text into text" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["doctor", "--config", str(tmp_path / "config.json")]) == 2
