"""Stages "joint" and "settle": everything is trained together on images and questions.

The language model is frozen for the first steps (otherwise it forgets what it learnt from symbolic scenes while the
tokens are still off), and the losses of the earlier stages stay on, small. The last stage, short, also makes the norms
of visual tokens equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.bundled_model.packing import answer_loss, pack, predict
from benchmarks.bundled_model.projector import alignment_loss, norm_loss, scene_words
from benchmarks.bundled_model.symbolic import (
    accuracy_by_kind,
    draw_questions,
    text_parameters,
    word_embeddings,
)
from benchmarks.bundled_model.vision import VisionHeads, auxiliary_losses, draw_scenes, tower_features, windows
from tokenprune.bundled.questions import KINDS, ask

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

FROZEN_SHARE: Final = 0.05
"""Share of the stage in which the language model does not learn."""
OTHERS: Final = 1.5
"""How often kinds that are not lookups are asked, relative to a lookup: they are the harder ones here."""


def joint_loss(
    model: LlavaForConditionalGeneration,
    heads: VisionHeads,
    rng: np.random.Generator,
    progress: float,
    *,
    scenes: int,
    questions: int,
    equal_norms: float = 0.0,
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss on fresh training scenes with questions, all 256 visual tokens present.

    Args:
        model: the model.
        heads: the read-outs of the vision stages.
        rng: source of randomness.
        progress: how much of the stage is done, 0 to 1.
        scenes: scenes per step.
        questions: questions per scene.
        equal_norms: weight of ``projector.norm_loss``.
    """
    drawn = draw_scenes(rng, scenes)
    asked = [draw_questions(cards, questions, rng, OTHERS) for cards, _ in drawn]
    batch = windows(drawn, 16, 1, rng)
    features, cls = tower_features(model, batch.pixels, batch.patches)
    auxiliary, figures = auxiliary_losses(heads, features, cls, batch)
    tokens = model.model.multi_modal_projector(features)
    alignment, more = alignment_loss(tokens, word_embeddings(model), scene_words(drawn))
    packed = pack(asked)
    logits = predict(model, tokens, packed)
    loss = answer_loss(logits, packed)
    loss = loss + 0.3 * alignment + 0.2 * auxiliary["digit"] + 0.1 * auxiliary["colour"] + 0.1 * auxiliary["image"]
    if equal_norms > 0.0:
        loss = loss + equal_norms * norm_loss(tokens, word_embeddings(model))
    frozen = progress < FROZEN_SHARE
    for parameter in text_parameters(model):
        # A gradient still flows through the frozen layers to the tokens.
        parameter.requires_grad_(not frozen)
    return loss, {**accuracy_by_kind(logits.answer, packed, asked), **more, "patch_digit": figures["patch_digit"]}


@torch.no_grad()
def joint_accuracy(model: LlavaForConditionalGeneration, *, scenes: int = 60) -> dict[str, float]:
    """Accuracy on validation scenes, one question of each kind per scene, the same scenes at every call."""
    rng = np.random.default_rng(2)
    drawn = draw_scenes(rng, scenes, "validation")
    asked = [[ask(kind, cards, rng) for kind in KINDS] for cards, _ in drawn]
    batch = windows(drawn, 16, 1, rng)
    features, _ = tower_features(model, batch.pixels, batch.patches)
    packed = pack(asked)
    answer = predict(model, model.model.multi_modal_projector(features), packed).answer
    return {f"validation_{name}": value for name, value in accuracy_by_kind(answer, packed, asked).items()}
