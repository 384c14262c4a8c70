"""The whole recipe: which stages, how many steps, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import nn

from benchmarks.bundled_model.architecture import build_model
from benchmarks.bundled_model.export import export
from benchmarks.bundled_model.joint import joint_accuracy, joint_loss
from benchmarks.bundled_model.loop import Log, Stage, run_stage
from benchmarks.bundled_model.projector import projector_loss
from benchmarks.bundled_model.symbolic import symbolic_loss
from benchmarks.bundled_model.vision import VisionHeads, vision_accuracy, vision_loss


@dataclass(frozen=True, slots=True)
class VisionStage:
    """One size of window: its settings, window side in patches, scenes per step and windows per scene."""

    stage: Stage
    side: int
    scenes: int
    per_scene: int


@dataclass(frozen=True, slots=True)
class SymbolicStage:
    """One length of symbolic scene.

    Attributes:
        stage: its settings.
        visible: visual tokens per scene.
        per_card: at most so many of them for each card.
        batch: scenes per step.
        noise: noise on the tokens, relative to their size.
        others: how often kinds that are not lookups are asked, relative to a lookup.
        hint: weight of the hint, see ``packing.answer_loss``.
        growing: whether the number of cards grows along the stage.
    """

    stage: Stage
    visible: int
    per_card: int
    batch: int
    noise: float = 0.5
    others: float = 1.0
    hint: float = 0.0
    growing: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is trained, apart from the seed.

    Attributes:
        vision: sizes of window for the tower, in order.
        symbolic: lengths of symbolic scenes for the language model, in order.
        projector: settings of the alignment of the projector.
        joint: settings of the joint training.
        settle: settings of the last stage, joint training with equal norms.
        equal_norms: weight of equal norms in that stage.
        scenes: scenes per step in the last three.
        questions: questions per scene.
        check: validation scenes per evaluation.
    """

    vision: tuple[VisionStage, ...]
    symbolic: tuple[SymbolicStage, ...]
    projector: Stage
    joint: Stage
    settle: Stage
    equal_norms: float = 20.0
    scenes: int = 12
    questions: int = 10
    check: int = 60


FULL: Final = Recipe(
    vision=(
        VisionStage(Stage("vision-4", 2000, 1.5e-3, decay=0.05), side=4, scenes=24, per_scene=5),
        VisionStage(Stage("vision-8", 500, 9e-4, decay=0.05), side=8, scenes=20, per_scene=2),
        VisionStage(Stage("vision-16", 800, 6e-4, decay=0.05), side=16, scenes=10, per_scene=1),
    ),
    symbolic=(
        SymbolicStage(
            Stage("symbolic-16", 300, 2e-3, floor=0.5),
            visible=16,
            per_card=1,
            batch=32,
            noise=0.2,
            others=0.0,
            hint=1.0,
            growing=True,
        ),
        SymbolicStage(
            Stage("symbolic-32", 200, 1.5e-3, floor=0.5), visible=32, per_card=2, batch=24, noise=0.3, hint=0.3
        ),
        SymbolicStage(Stage("symbolic-96", 200, 1.2e-3, floor=0.5), visible=96, per_card=5, batch=16),
        SymbolicStage(Stage("symbolic-256", 300, 1e-3, floor=0.1), visible=256, per_card=9, batch=12),
    ),
    projector=Stage("projector", 150, 3e-3),
    joint=Stage("joint", 1000, 8e-4),
    settle=Stage("settle", 300, 3e-4),
)
"""The recipe of the committed weights."""


def train(folder: Path, seed: int, recipe: Recipe = FULL, only: str | None = None) -> Path:
    """Run all stages that are not finished yet, and save the model.

    Args:
        folder: for checkpoints, the log and the result; made if missing. Running again with the same folder resumes.
        seed: seed of initial weights and data.
        recipe: what to run.
        only: "vision" or "symbolic" runs these stages alone; they do not depend on each other, so that two processes
            with the same folder can share the work before a third run does the rest.

    Returns:
        The folder of the saved model, ``folder / "model"``.

    Raises:
        ValueError: ``only`` is something else.
    """
    if only not in (None, "vision", "symbolic"):
        raise ValueError(f'train: only must be "vision", "symbolic" or None, got {only!r}')
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(folder, seed, recipe)
    if only != "symbolic":
        run.vision()
    if only != "vision":
        run.symbolic()
    if only is None:
        run.projector()
        run.joint(recipe.joint, 0.0)
        run.joint(recipe.settle, recipe.equal_norms)
        export(run.model, folder)
    return folder / "model"


class _Run:
    """The stages of one training; each changes the model in place, or loads what it had become."""

    def __init__(self, folder: Path, seed: int, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = build_model(seed)
        torch.manual_seed(seed + 1)
        self.heads = VisionHeads()
        self.sight = nn.ModuleDict({"tower": self.model.model.vision_tower, "heads": self.heads})
        self.language = nn.ModuleDict({"text": self.model.model.language_model, "head": self.model.lm_head})
        self.bridge: nn.Module = self.model.model.multi_modal_projector
        self.run = partial(run_stage, seed=seed, folder=folder, log=Log(folder))

    def vision(self) -> None:
        for part in self.recipe.vision:
            loss = partial(
                vision_loss, self.model, self.heads, side=part.side, scenes=part.scenes, per_scene=part.per_scene
            )
            check = partial(vision_accuracy, self.model, self.heads, side=part.side, scenes=self.recipe.check)
            self.run(part.stage, self.sight, [(list(self.sight.parameters()), 1.0)], loss, evaluate=check)

    def symbolic(self) -> None:
        for part in self.recipe.symbolic:
            loss = partial(
                symbolic_loss,
                self.model,
                growing=part.growing,
                visible=part.visible,
                per_card=part.per_card,
                batch=part.batch,
                questions=self.recipe.questions,
                noise=part.noise,
                others=part.others,
                hint=part.hint,
            )
            self.run(part.stage, self.language, [(list(self.language.parameters()), 1.0)], loss)

    def projector(self) -> None:
        loss = partial(projector_loss, self.model, scenes=self.recipe.scenes)
        check = partial(joint_accuracy, self.model, scenes=self.recipe.check)
        self.run(self.recipe.projector, self.bridge, [(list(self.bridge.parameters()), 1.0)], loss, evaluate=check)

    def joint(self, stage: Stage, equal_norms: float) -> None:
        loss = partial(
            joint_loss,
            self.model,
            self.heads,
            scenes=self.recipe.scenes,
            questions=self.recipe.questions,
            equal_norms=equal_norms,
        )
        check = partial(joint_accuracy, self.model, scenes=self.recipe.check)
        everything = nn.ModuleDict({"model": self.model, "heads": self.heads})
        # The tower has been trained longest and changes least.
        groups = [(list(self.sight.parameters()), 0.5), ([*self.language.parameters(), *self.bridge.parameters()], 1.0)]
        self.run(stage, everything, groups, loss, evaluate=check)
