"""Stages "symbolic-16" to "symbolic-256": the language model learns the questions before it ever sees an image.

In a symbolic scene a patch of a card is the sum of the word embeddings of its digit, colour and region; any other
patch is "photo" plus its region; noise is added to all. The number of visual tokens grows from 16 to the final 256 and
the number of cards grows along the first stage, which asks lookups alone. The other kinds are learnt within a few
hundred steps later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.bundled_model.packing import Packed, answer_loss, pack, predict
from tokenprune.bundled.cards import GRID, Card, lay_out, patch_region
from tokenprune.bundled.questions import KINDS, LOOKUPS, Question, ask
from tokenprune.bundled.vocabulary import BACKGROUND, COLOURS, DIGITS, IDS, REGIONS, SPECIAL

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

N: Final = GRID * GRID
DIGIT_IDS: Final = tuple(IDS[word] for word in DIGITS)
COLOUR_IDS: Final = tuple(IDS[word] for word in COLOURS)
REGION_IDS: Final = tuple(IDS[word] for word in REGIONS)
_REGION_OF_PATCH: Final = np.array([REGION_IDS[patch_region(patch)] for patch in range(N)])


def patch_words(cards: Sequence[Card]) -> NDArray[np.int64]:
    """Ids of the three words that each patch stands for: (256, 3), columns digit, colour, region.

    A patch without a card has the background word in place of digit and colour.
    """
    words = np.empty((N, 3), dtype=np.int64)
    words[:, :2] = IDS[BACKGROUND]
    words[:, 2] = _REGION_OF_PATCH
    for card in cards:
        patches = list(card.patches)
        words[patches, 0] = DIGIT_IDS[card.digit]
        words[patches, 1] = IDS[card.colour]
    return words


def word_embeddings(model: LlavaForConditionalGeneration) -> Tensor:
    """The input embeddings of all words, (vocabulary, d)."""
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return embeddings


def word_norm(embeddings: Tensor) -> Tensor:
    """Mean norm of the embeddings of proper words, a scalar without gradient."""
    return embeddings.detach().norm(dim=-1)[len(SPECIAL) :].mean()


def patch_targets(embeddings: Tensor, words: Tensor) -> Tensor:
    """Embedding that a patch should have: the sum of its words, with the mean norm of a word.

    All patches have the same norm, so that a score such as ``-||v - m||^2`` depends on what a patch shows and not on
    how many different words describe it.

    Args:
        embeddings: (vocabulary, d) word embeddings.
        words: (..., 3) ids from ``patch_words``.

    Returns:
        (..., d)
    """
    return word_norm(embeddings) * nn.functional.normalize(embeddings[words].sum(dim=-2), dim=-1)


def draw_questions(cards: Sequence[Card], count: int, rng: np.random.Generator, others: float = 1.0) -> list[Question]:
    """Questions for training; ``others`` is how often kinds that are not lookups are drawn, relative to a lookup."""
    weights = np.array([1.0 if kind in LOOKUPS else others for kind in KINDS])
    kinds = rng.choice(len(KINDS), size=count, p=weights / weights.sum())
    return [ask(KINDS[int(kind)], cards, rng) for kind in kinds]


def visible_patches(cards: Sequence[Card], visible: int, per_card: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which patches a small symbolic scene has, ascending: up to ``per_card`` of every card, the rest background."""
    chosen = [patch for card in cards for patch in rng.permutation(card.patches)[:per_card].tolist()]
    covered = {patch for card in cards for patch in card.patches}
    background = rng.permutation([patch for patch in range(N) if patch not in covered])
    return np.sort(np.concatenate([np.array(chosen, dtype=np.int64), background[: visible - len(chosen)]]))


def symbolic_loss(
    model: LlavaForConditionalGeneration,
    rng: np.random.Generator,
    progress: float,
    *,
    growing: bool,
    visible: int,
    per_card: int,
    batch: int,
    questions: int = 10,
    noise: float = 0.5,
    others: float = 1.0,
    hint: float = 0.0,
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss on fresh symbolic scenes.

    Args:
        model: the model; only its language model is used.
        rng: source of randomness.
        progress: how much of the stage is done, 0 to 1.
        growing: whether the number of cards grows from 1 or 2 to 3 to 6 along the stage.
        visible: number of visual tokens.
        per_card: at most so many of them for each card.
        batch: scenes.
        questions: questions per scene.
        noise: size of the noise, relative to the root mean square of the tokens.
        others: how often kinds that are not lookups are asked, relative to a lookup.
        hint: see ``packing.answer_loss``.
    """
    most = most_cards(progress) if growing else 6
    scenes = [lay_out(rng, 3 if most == 6 else 1, most) for _ in range(batch)]
    asked = [draw_questions(cards, questions, rng, others) for cards in scenes]
    words = np.stack([patch_words(cards)[visible_patches(cards, visible, per_card, rng)] for cards in scenes])
    tokens = patch_targets(word_embeddings(model), torch.from_numpy(words))
    scale = noise * tokens.detach().square().mean().sqrt()
    tokens = tokens + scale * torch.from_numpy(rng.standard_normal(tokens.shape, dtype=np.float32))
    packed = pack(asked)
    logits = predict(model, tokens, packed)
    return answer_loss(logits, packed, hint), accuracy_by_kind(logits.answer, packed, asked)


def accuracy_by_kind(answer: Tensor, packed: Packed, asked: Sequence[Sequence[Question]]) -> dict[str, float]:
    """Share of right answers over all questions, and for each kind that was asked."""
    right = (answer.argmax(-1) == packed.answers).flatten().tolist()
    kinds = [question.kind for questions in asked for question in questions]
    figures = {"accuracy": sum(right) / len(right)}
    for kind in KINDS:
        hits = [hit for hit, own in zip(right, kinds, strict=True) if own == kind]
        if hits:
            figures[kind] = sum(hits) / len(hits)
    return figures


def text_parameters(model: LlavaForConditionalGeneration) -> list[nn.Parameter]:
    """Parameters of the language model and its output layer."""
    return [*model.model.language_model.parameters(), *model.lm_head.parameters()]


def most_cards(progress: float) -> int:
    """Largest number of cards while a stage in which cards grow in number is at ``progress`` (0 to 1)."""
    return 2 if progress < 0.2 else 4 if progress < 0.4 else 6
