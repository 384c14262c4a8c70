"""The whole recipe at two steps per stage, and its parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.bundled_model import loop
from benchmarks.bundled_model.loop import Log, Stage, run_stage
from benchmarks.bundled_model.packing import layout
from benchmarks.bundled_model.recipe import FULL, Recipe, SymbolicStage, VisionStage, train
from benchmarks.bundled_model.symbolic import patch_targets, patch_words
from benchmarks.bundled_model.vision import draw_scenes, windows

transformers = pytest.importorskip("transformers")

TINY = Recipe(
    vision=(VisionStage(Stage("vision-4", 2, 1e-3), side=4, scenes=2, per_scene=1),),
    symbolic=(SymbolicStage(Stage("symbolic-16", 2, 1e-3), visible=16, per_card=1, batch=2, hint=1.0, growing=True),),
    projector=Stage("projector", 2, 1e-3),
    joint=Stage("joint", 2, 1e-3),
    settle=Stage("settle", 2, 1e-3),
    scenes=2,
    questions=3,
    check=2,
)


def test_the_recipe_runs_resumes_and_saves_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    train(tmp_path, 0, TINY, only="symbolic")
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"symbolic-16"}
    before = (tmp_path / "symbolic-16.safetensors").read_bytes()
    folder = train(tmp_path, 0, TINY)
    assert (tmp_path / "symbolic-16.safetensors").read_bytes() == before
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) < 4_000_000
    transformers.AutoProcessor.from_pretrained(folder)
    rows = (folder / "training_log.csv").read_text(encoding="utf-8").splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"symbolic-16", "vision-4", "projector", "joint", "settle"}
    assert (folder / "training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 1)
    stage = Stage("toy", 5, 0.1, warmup=2)

    def go(folder: Path, stop: int | None) -> nn.Linear:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        calls = 0

        def loss(rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
            nonlocal calls
            if calls == stop:
                raise KeyboardInterrupt
            calls += 1
            x = torch.from_numpy(rng.standard_normal((4, 3), dtype=np.float32))
            return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

        run_stage(stage, module, [(list(module.parameters()), 1.0)], loss, seed=0, folder=folder, log=Log(folder))
        return module

    whole = go(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", 3)
    assert (tmp_path / "cut" / "toy.partial.safetensors").exists()
    resumed = go(tmp_path / "cut", None)
    assert torch.equal(whole.weight, resumed.weight)
    assert not (tmp_path / "cut" / "toy.partial.safetensors").exists()
    assert torch.equal(load_file(tmp_path / "cut" / "toy.safetensors")["weight"], whole.weight)


def test_train_refuses_an_unknown_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='only must be "vision", "symbolic" or None'):
        train(tmp_path, 0, TINY, only="joint")


def test_the_full_recipe_ends_at_the_final_size() -> None:
    assert FULL.vision[-1].side == 16
    assert FULL.symbolic[-1].visible == 256
    assert FULL.symbolic[-1].hint == 0.0


def test_packed_questions_see_the_image_and_themselves_only() -> None:
    mask, positions = layout(visual=2, questions=2, length=3)
    shared = mask.shape[-1] - 6
    allowed = mask[0, 0]
    assert not allowed[shared + 3 :, shared : shared + 3].any()
    assert allowed[shared + 3 :, :shared].all()
    assert not allowed.triu(1).any()
    assert positions[0, shared : shared + 3].tolist() == positions[0, shared + 3 :].tolist()


def test_window_labels_match_the_cards_they_show() -> None:
    rng = np.random.default_rng(0)
    scenes = draw_scenes(rng, 3)
    batch = windows(scenes, 4, 2, rng)
    for row in range(6):
        cards, _ = scenes[row // 2]
        at = {patch: card.digit for card in cards for patch in card.patches}
        assert batch.digit[row].tolist() == [at.get(patch, 10) for patch in batch.patches[row].tolist()]
        shown = {digit for digit in batch.digit[row].tolist() if digit != 10}
        assert {digit for digit in range(10) if batch.present[row, digit]} == shown
        assert shown


def test_targets_have_one_norm_and_point_to_their_words() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(70, 32)
    cards, _ = draw_scenes(np.random.default_rng(0), 1)[0]
    words = torch.from_numpy(patch_words(cards))
    targets = patch_targets(embeddings, words)
    assert torch.allclose(targets.norm(dim=-1), targets.norm(dim=-1).mean().expand(256), rtol=1e-5)
    shown = words[cards[0].patches[0]]
    assert set((targets[cards[0].patches[0]] @ embeddings.T).topk(3).indices.tolist()) == set(shown.tolist())
