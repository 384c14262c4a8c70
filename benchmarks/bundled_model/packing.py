"""Several questions behind one visual prefix: the sequences that the language model is trained on.

A row is ``prefix | 256 visual tokens | question 1 | question 2 | ...``. Every question attends to the prefix, the
visual tokens and itself, never to another question, and its positions restart right behind the visual tokens. So one
pass over the (long) visual part serves several questions, and each of them sees exactly what it would see alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tokenprune.bundled.questions import Question
from tokenprune.bundled.vocabulary import ASSISTANT, BOS, EOS, IDS, PAD, SYSTEM, USER, encode

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

PREFIX: Final[tuple[int, ...]] = (IDS[BOS], *encode(f"{SYSTEM} {USER}"))
"""Ids in front of the visual tokens."""
_SUFFIX: Final = len(encode(f"? {ASSISTANT}"))


@dataclass(frozen=True, slots=True)
class Packed:
    """Token ids of b scenes with q questions each.

    Attributes:
        ids: (b, q, s) question, ``assistant :`` and answer, padded on the right.
        last: (b, q) index of the last token before the answer; the next one predicts EOS.
        answers: (b, q) id of the answer.
    """

    ids: Tensor
    last: Tensor
    answers: Tensor


def pack(scenes: Sequence[Sequence[Question]]) -> Packed:
    """Encode q questions for each of b scenes; all scenes need equally many."""
    rows = [
        [[*encode(f"{question.text} {ASSISTANT}"), IDS[question.answer]] for question in questions]
        for questions in scenes
    ]
    longest = max(len(row) for scene in rows for row in scene)
    ids = torch.tensor([[row + [IDS[PAD]] * (longest - len(row)) for row in scene] for scene in rows])
    last = torch.tensor([[len(row) - 2 for row in scene] for scene in rows])
    answers = torch.tensor([[row[-1] for row in scene] for scene in rows])
    return Packed(ids, last, answers)


def layout(visual: int, questions: int, length: int) -> tuple[Tensor, Tensor]:
    """Attention mask and positions of a packed row.

    Args:
        visual: number of visual tokens.
        questions: number of questions behind them.
        length: tokens per question.

    Returns:
        bool mask (1, 1, l, l), True where attention is allowed, and positions (1, l).
    """
    shared = len(PREFIX) + visual
    total = shared + questions * length
    segment = torch.cat([torch.full((shared,), -1), torch.arange(questions).repeat_interleave(length)])
    allowed = torch.ones(total, total, dtype=torch.bool).tril()
    allowed &= (segment[None, :] == -1) | (segment[None, :] == segment[:, None])
    positions = torch.cat([torch.arange(shared), shared + torch.arange(length).repeat(questions)])
    return allowed[None, None], positions[None]


@dataclass(frozen=True, slots=True)
class Logits:
    """What the language model predicts at three places of each question, each (b, q, vocabulary).

    Attributes:
        hint: behind the last word of the question proper, where a lookup names what it asks about.
        answer: behind the whole prompt; this is the answer.
        end: behind the right answer; this should be EOS.
    """

    hint: Tensor
    answer: Tensor
    end: Tensor


def predict(model: LlavaForConditionalGeneration, visual: Tensor, packed: Packed) -> Logits:
    """Run the language model on packed rows.

    Args:
        model: the model; its vision tower is not used here.
        visual: (b, n, d) visual tokens, as they enter the language model.
        packed: the questions.
    """
    batch, questions, length = packed.ids.shape
    embed = model.get_input_embeddings()
    prefix = embed(torch.tensor(PREFIX)).expand(batch, -1, -1)
    rows = embed(packed.ids.flatten(1))
    inputs = torch.cat([prefix, visual.to(rows.dtype), rows], dim=1)
    mask, positions = layout(visual.shape[1], questions, length)
    hidden = model.model.language_model(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions.expand(batch, -1), use_cache=False
    ).last_hidden_state
    hidden = hidden[:, -questions * length :].unflatten(1, (questions, length))
    at = packed.last[:, :, None, None].expand(-1, -1, 1, hidden.shape[-1])
    hint, answer, end = (model.lm_head(hidden.gather(2, at + offset).squeeze(2)) for offset in (-_SUFFIX, 0, 1))
    return Logits(hint, answer, end)


def answer_loss(logits: Logits, packed: Packed, hint: float = 0.0) -> Tensor:
    """Cross-entropy of the answers, plus a little for the EOS behind them.

    Args:
        logits: from ``predict``.
        packed: the targets.
        hint: weight of predicting the answer right behind the word that a lookup asks about, before "? assistant :".
            There one attention step is enough (find the token that shares this word); the answer's own place then only
            needs to look a few words back. Without it the model stays with "some digit that is in the scene".
    """
    answers = packed.answers.flatten()
    entropy = torch.nn.functional.cross_entropy
    loss = entropy(logits.answer.flatten(0, 1), answers)
    loss = loss + 0.1 * entropy(logits.end.flatten(0, 1), torch.full_like(answers, IDS[EOS]))
    if hint > 0.0:
        loss = loss + hint * entropy(logits.hint.flatten(0, 1), answers)
    return loss
