"""Stage "projector": visual tokens move next to the word embeddings of what they show.

Tower and language model are frozen. A patch of a red card with a seven is projected near the embeddings of "red",
"seven" and its region: by cross-entropy against the words, and by a squared error that fixes the size, so that the
language model, still frozen, can answer from projected tokens before joint training starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bundled_model.symbolic import (
    COLOUR_IDS,
    DIGIT_IDS,
    REGION_IDS,
    patch_targets,
    patch_words,
    word_embeddings,
    word_norm,
)
from benchmarks.bundled_model.vision import draw_scenes, tower_features, windows
from tokenprune.bundled.cards import Card
from tokenprune.bundled.vocabulary import BACKGROUND, IDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


def alignment_loss(tokens: Tensor, embeddings: Tensor, words: Tensor) -> tuple[Tensor, dict[str, float]]:
    """How far visual tokens are from the words they stand for.

    Args:
        tokens: (b, n, d) projected tokens.
        embeddings: (vocabulary, d) word embeddings; no gradient flows into them.
        words: (b, n, 3) ids from ``patch_words``.

    Returns:
        The loss and figures for the log: the relative squared error, and how often the nearest digit and colour words
        are right on cards.
    """
    embeddings = embeddings.detach()
    target = patch_targets(embeddings, words)
    card = words[:, :, 0] != IDS[BACKGROUND]
    # Cards and background weigh the same in sum: most patches are background.
    weight = torch.where(card, 0.5 / card.float().mean().clamp(min=1e-3), 0.5 / (~card).float().mean().clamp(min=1e-3))
    squared = (tokens - target).square().mean(-1) / target.square().mean()
    loss = (squared * weight).mean()
    direction = nn.functional.normalize(tokens, dim=-1)
    figures = {"align_error": float(squared.detach().mean()), "align_error_card": float(squared.detach()[card].mean())}
    for column, (name, ids) in enumerate({"digit": DIGIT_IDS, "colour": COLOUR_IDS, "region": REGION_IDS}.items()):
        choices = (*ids, IDS[BACKGROUND]) if name != "region" else ids
        known = nn.functional.normalize(embeddings[list(choices)], dim=-1)
        place = torch.full((len(embeddings),), -1).index_put((torch.tensor(choices),), torch.arange(len(choices)))
        logits = 12.0 * direction @ known.T
        goal = place[words[:, :, column]]
        entropy = nn.functional.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="none")
        loss = loss + 0.3 * (entropy * weight.flatten()).mean()
        if name != "region":
            figures[f"align_{name}"] = float((logits.detach()[card].argmax(-1) == goal[card]).float().mean())
    return loss, figures


def norm_loss(tokens: Tensor, embeddings: Tensor) -> Tensor:
    """Mean squared relative distance of the norms of tokens (b, n, d) from the mean norm of a word.

    Left alone, tokens of cards end up a little longer than the others. That is enough for a score such as
    ``-||v - m||^2`` to follow norms more than what a token shows.
    """
    goal = word_norm(embeddings)
    return (tokens.norm(dim=-1) / goal - 1.0).square().mean()


def scene_words(scenes: Sequence[tuple[Sequence[Card], object]]) -> Tensor:
    """Word ids of all patches of some scenes, (b, 256, 3)."""
    return torch.from_numpy(np.stack([patch_words(cards) for cards, _ in scenes]))


def projector_loss(
    model: LlavaForConditionalGeneration, rng: np.random.Generator, progress: float, *, scenes: int
) -> tuple[Tensor, Mapping[str, float]]:
    """Alignment loss on fresh training scenes; only the projector receives a gradient."""
    drawn = draw_scenes(rng, scenes)
    batch = windows(drawn, 16, 1, rng)
    with torch.no_grad():
        features, _ = tower_features(model, batch.pixels, batch.patches)
    tokens = model.model.multi_modal_projector(features)
    return alignment_loss(tokens, word_embeddings(model), scene_words(drawn))
