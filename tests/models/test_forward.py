"""Plain forwards under pruning: logits, labels, gradients, and what columns they have."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.oracle import BATCHES, ByContent, KeepAll, features_of, reference_rows, tiny
from tokenprune import prune, prune_inputs
from tokenprune.models import Record

ROWS = BATCHES["two images"]
Inputs = dict[str, Any]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_the_reference(attention: str, positions: Any, padding_side: str) -> None:
    model, make_inputs = tiny(attention)
    inputs: Inputs = make_inputs(ROWS, padding_side=padding_side)
    with prune(model, ByContent(), positions=positions) as record, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    call = record.calls[0]
    assert call.columns is not None
    assert logits.shape[:2] == call.columns.shape == (3, call.columns_kept)
    for row, reference in enumerate(reference_rows(model, inputs, record, positions, steps=1)):
        assert (logits[row, -1] - reference.logits[0]).abs().max() <= 1e-5


def test_columns_say_where_each_logit_stands() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(ROWS)
    with prune(model, ByContent()) as record:
        model(**inputs)
    columns = record.calls[0].columns
    assert columns is not None
    for row in range(3):
        mine = columns[row][columns[row] >= 0]
        visual = inputs["input_ids"][row] == model.config.image_token_id
        text = (inputs["attention_mask"][row].bool() & ~visual).nonzero().flatten()
        assert torch.equal(mine[~visual[mine]], text), "text is never dropped"
        kept = [
            i for image in record.images if image.prompt == row for i in (image.indices + 16 * image.image).tolist()
        ]
        assert torch.equal(mine[visual[mine]], visual.nonzero().flatten()[kept])


def hand_made_loss(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor, record: Record) -> torch.Tensor:
    """Mean over every label that has a kept token before it, row by row, without padding."""
    features = features_of(model, inputs)
    losses = []
    at = 0
    for row, ids in enumerate(inputs["input_ids"]):
        images = [image for image in record.images if image.prompt == row]
        embeds, targets, image, token = [], [], 0, 0
        for column in inputs["attention_mask"][row].nonzero().flatten().tolist():
            if ids[column] != model.config.image_token_id:
                embeds.append(model.get_input_embeddings()(ids[column]))
                targets.append(labels[row, column])
                continue
            if token in images[image].indices.tolist():
                embeds.append(features[at + image][token])
                targets.append(labels[row, column])
            token += 1
            if token == 16:
                image, token = image + 1, 0
        at += len(images)
        length = len(embeds)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        place = torch.arange(length)[None]
        logits = model(inputs_embeds=torch.stack(embeds)[None], attention_mask=mask, position_ids=place).logits[0]
        losses.append(cross_entropy(logits[:-1], torch.stack(targets)[1:], reduction="none", ignore_index=-100))
        losses[-1] = losses[-1][torch.stack(targets)[1:] != -100]
    return torch.cat(losses).mean()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_loss_equals_a_hand_made_one(padding_side: str) -> None:
    model, make_inputs = tiny()
    inputs: Inputs = make_inputs(ROWS, padding_side=padding_side)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    with prune(model, ByContent()) as record, torch.no_grad():
        output = model(**inputs, labels=labels)
    with torch.no_grad():
        expected = hand_made_loss(model, inputs, labels, record)
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
    pruned = prune_inputs(model, ByContent(), **inputs, labels=labels)
    with torch.no_grad():
        torch.testing.assert_close(model(**pruned).loss, expected, atol=1e-6, rtol=0)


def test_gradients_reach_the_projector_through_kept_tokens_only() -> None:
    model, make_inputs = tiny()
    inputs: Inputs = make_inputs(["what is in <0> then"])
    pruned = prune_inputs(model, ByContent(), **inputs, labels=inputs["input_ids"])
    assert pruned["inputs_embeds"].requires_grad
    weight = model.model.multi_modal_projector.linear_2.weight
    with prune(model, ByContent()):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_keep_all_is_bit_identical(padding_side: str) -> None:
    model, make_inputs = tiny()
    inputs: Inputs = make_inputs(ROWS, padding_side=padding_side)
    labels = inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs, labels=labels)
        with prune(model, KeepAll()):
            same = model(**inputs, labels=labels)
    assert torch.equal(plain.logits, same.logits)
    assert torch.equal(plain.loss, same.loss)


def test_own_positions_are_kept_or_renumbered_from_the_first() -> None:
    model, make_inputs = tiny()
    inputs: Inputs = make_inputs(["what is in <0> then"])
    own = 7 + 2 * torch.arange(inputs["input_ids"].shape[1])[None]
    for policy in ("original", "compact"):
        pruned = prune_inputs(model, ByContent(), positions=policy, **inputs, position_ids=own)
        places = pruned["position_ids"][0]
        if policy == "compact":
            assert places.tolist() == list(range(7, 7 + len(places)))
        else:
            assert set(places.tolist()) < set(own[0].tolist())
            assert places.diff().min() >= 2
