"""`transformers.Trainer` under pruning: the weights that it arrives at are those of a loop written out by hand."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tests.models.decoder_oracle import Stage, most_attended
from tests.models.training_oracle import GROUPS, labels_of, loss_inside
from tokenprune import prune
from tokenprune.testing.tiny.models import PAD, tiny_llava

PROMPTS = [
    "look at <0> now",
    "<1> what is it",
    "tell me more about the things in <2> please",
    "what of <3> here",
    "and in <4> then",
    "compare <5> with <6> please",
    "both <7> <8> are here",
    "what is in <9> then",
]
RATE = 2e-3
KEEP = 5


def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padding on the right, as for training; the images of all rows one after another."""
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }
    return {**batch, "pixel_values": torch.cat([row["pixel_values"] for row in rows])}


def dataset(model: Any, make_inputs: Any) -> list[dict[str, Tensor]]:
    rows = []
    for prompt in PROMPTS:
        inputs = make_inputs([prompt])
        labels = labels_of(model, inputs)
        labels[:, :1] = -100
        pixels = inputs.pop("pixel_values")
        rows.append(
            {**{name: value[0] for name, value in {**inputs, "labels": labels}.items()}, "pixel_values": pixels}
        )
    return rows


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **settings,
    )


def by_hand(rows: list[dict[str, Tensor]]) -> tuple[Any, list[float]]:
    """Gradient descent on the hand-made language model, four rows at a time."""
    model, _ = tiny_llava(8, layers=4)
    losses = []
    for _ in range(2):
        for start in range(0, len(rows), 4):
            batch = collate(rows[start : start + 4])
            stages = [Stage(2, "original", most_attended(lambda key, left: KEEP))]
            loss = loss_inside(model, batch, batch["labels"], stages)
            model.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= RATE * parameter.grad
    return model, losses


def checkpointing(*, reentrant: bool) -> dict[str, Any]:
    """Arguments under the name that this release of transformers has for them."""
    names = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}}


@pytest.mark.parametrize(
    "settings",
    [{}, checkpointing(reentrant=False), checkpointing(reentrant=True)],
    ids=["plain", "checkpointing", "reentrant checkpointing"],
)
def test_fine_tuning_under_fastv_arrives_where_plain_gradient_descent_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model, make_inputs = tiny_llava(8, layers=4)
    rows = dataset(model, make_inputs)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model=model, args=arguments(tmp_path, **settings), train_dataset=rows, data_collator=collate)
    with prune(model, f"fastv(keep={KEEP}, layer=2)") as record:
        result = trainer.train()
    expected, losses = by_hand(rows)
    assert result.global_step == 4
    assert result.training_loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert losses[-2] < losses[0]
    assert losses[-1] < losses[1]
    told = dict(model.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(told[name], parameter, rtol=1e-4, atol=1e-5, msg=name)
    for group in GROUPS:
        assert any((told[n] - before[n]).abs().max() > 1e-6 for n in before if GROUPS[group] in n), group
    assert {image.layer_tokens for image in record.images} == {(16, 16, KEEP, KEEP)}
    assert len(record.calls) == 8


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "mixed precision"])
@pytest.mark.parametrize("strategy", ["visionzip(keep=7)", "grid_pool(keep=4)", "tome(keep=9)", "random(keep=4)"])
def test_the_projector_is_trained_alone_and_the_loss_falls(strategy: str, bf16: bool, tmp_path: Path) -> None:
    model, make_inputs = tiny_llava(8, layers=4)
    rows = dataset(model, make_inputs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("projector" in name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = arguments(tmp_path, bf16=bf16)
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    with prune(model, strategy):
        first = trainer.evaluate()["eval_loss"]
        trainer.train()
        last = trainer.evaluate()["eval_loss"]
    assert last < first - 1e-3
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {name for name in before if "projector" in name}


def test_evaluation_has_the_loss_of_what_is_left_and_labels_that_can_be_cut_to_it(tmp_path: Path) -> None:
    """Trainer collects logits of the kept columns, and labels of all of them: they are matched batch by batch."""
    model, make_inputs = tiny_llava(8, layers=4)
    rows = dataset(model, make_inputs)
    met: list[Any] = []

    with prune(model, f"fastv(keep={KEEP}, layer=2)") as record:

        def pair(logits: Any, labels: Tensor) -> Tensor:
            scores = logits[0] if isinstance(logits, tuple) else logits
            targets = record.calls[-1].cut_labels(labels)
            assert scores.shape[:2] == targets.shape
            assert scores.shape[1] < labels.shape[1]
            return torch.stack([scores[:, :-1].argmax(-1), targets[:, 1:]], dim=-1)

        def compute(found: Any) -> dict[str, float]:
            guesses, targets = found.predictions[..., 0], found.predictions[..., 1]
            met.append(found.label_ids.shape)
            real = targets != -100
            return {"accuracy": float((guesses == targets)[real].mean()), "words": float(real.sum())}

        trainer = Trainer(
            model=model,
            args=arguments(tmp_path, eval_do_concat_batches=True),
            eval_dataset=rows,
            data_collator=collate,
            preprocess_logits_for_metrics=pair,
            compute_metrics=compute,
        )
        metrics = trainer.evaluate(ignore_keys=["past_key_values"])
    assert metrics["eval_words"] == sum(int((row["labels"] != -100).sum()) for row in rows)
    stages = [Stage(2, "original", most_attended(lambda key, left: KEEP))]
    losses = []
    for start in range(0, len(rows), 3):
        batch = collate(rows[start : start + 3])
        with torch.no_grad():
            losses.append(float(loss_inside(model, batch, batch["labels"], stages)))
    # Trainer repeats the loss of a batch for each of its rows.
    assert metrics["eval_loss"] == pytest.approx(np.average(losses, weights=[3, 3, 2]), abs=1e-4)
    assert len(met) == 1


def test_label_smoothing_of_trainer_itself_is_an_error(tmp_path: Path) -> None:
    """It takes labels and logits apart, which have different lengths."""
    model, make_inputs = tiny_llava(8, layers=4)
    args = arguments(tmp_path, label_smoothing_factor=0.1)
    trainer = Trainer(model=model, args=args, train_dataset=dataset(model, make_inputs), data_collator=collate)
    with prune(model, "random(keep=4)"), pytest.raises((RuntimeError, ValueError), match="[Ss]ize|expected"):
        trainer.train()
