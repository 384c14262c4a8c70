"""Labels and gradients with stages inside the language model, against one that is written out by hand."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.models.decoder_oracle import Attended, InDecoder, Stage, by_content, most_attended
from tests.models.family_oracle import BATCHES as FAMILY_BATCHES
from tests.models.family_oracle import FAMILIES, IN_DECODER, LAYERS
from tests.models.oracle import BATCHES as ALL
from tests.models.oracle import traces
from tests.models.test_decoder_fitprune import stages_of
from tests.models.test_decoder_generate import number
from tests.models.test_decoder_sparsevlm import Sketch, sketch_rule
from tests.models.test_decoder_withdrawal import nothing
from tests.models.training_oracle import (
    GROUPS,
    gradients,
    in_double,
    labels_of,
    loss_inside,
    made_double,
    parameters_of,
    slope,
)
from tokenprune import PruningStrategy, parse, prune
from tokenprune.baselines import VTW, FastV, FitPrune
from tokenprune.core.places import Positions
from tokenprune.models import UnsupportedError
from tokenprune.models.prompt.labels import labels_at
from tokenprune.testing.tiny.families import tiny_model
from tokenprune.testing.tiny.models import tiny_llava

BATCHES = {**ALL, "two images": ["compare <0> with <4> please", "here is <1> now", "no image at all"]}
CASES: dict[str, tuple[PruningStrategy, Any]] = {
    "random": (InDecoder(), lambda policy: [Stage(2, policy, by_content(InDecoder()))]),
    "attended": (Attended(), lambda policy: [Stage(2, policy, most_attended(number))]),
    "two stages": (
        FastV(9, layer=1) >> FastV(4, layer=3),
        lambda policy: [
            Stage(layer, policy, most_attended(lambda key, left: 9 if left > 9 else 4)) for layer in (1, 3)
        ],
    ),
    "within layers": (FitPrune((5, 0, 4, 2)), lambda policy: stages_of((5, 0, 4, 2), policy)),
    "withdrawn": (VTW(layer=2), lambda policy: [Stage(2, policy, nothing)]),
    "new tokens": (
        Sketch(layer=1) >> FastV(4, layer=3),
        lambda policy: [Stage(1, policy, sketch_rule), Stage(3, policy, most_attended(lambda key, left: 4))],
    ),
}


def tiny(attention: str = "sdpa") -> tuple[Any, Any]:
    model, make_inputs = tiny_llava(8, layers=4, attn_implementation=attention)
    return model, make_inputs


def checkpoint(model: Any, *, reentrant: bool) -> None:
    switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    switch({"use_reentrant": reentrant})


@pytest.mark.parametrize("batch", ["padded", "two images", "side by side"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(("attention", "positions"), [("sdpa", "original"), ("eager", "compact")])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_those_of_the_hand_made_model(
    case: str, attention: str, positions: Positions, padding_side: str, batch: str
) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES[batch], padding_side=padding_side)
    labels = labels_of(model, inputs)
    strategy, stages = CASES[case]
    with prune(model, strategy, positions=positions) as record:
        output = model(**inputs, labels=labels)
    assert output.logits.shape[:2] == record.calls[0].columns.shape  # type: ignore[union-attr]
    output.loss.backward()
    told = gradients(model)
    model.zero_grad()
    expected = loss_inside(model, inputs, labels, stages(positions))
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(told[name], gradient, rtol=2e-3, atol=1e-5, msg=name)
    for group in GROUPS:
        assert any(told[n].abs().max() > 1e-5 for n in told if GROUPS[group] in n), f"nothing flows into the {group}"
    made = any(image.extra_tokens for image in record.images)
    assert made == (case == "new tokens")
    assert {image.gradient for image in record.images if image.extra_tokens} == ({True} if made else set())


def test_a_label_is_predicted_from_the_token_that_is_left_before_it() -> None:
    labels = torch.tensor([[11, 12, 13, 14, 15, 16]])
    columns = torch.tensor([[-1, 0, 2, -2, 4, 5]])  # padding, two words, a token made on the way, two words
    assert labels_at(labels, columns).tolist() == [[-100, -100, 13, -100, 15, 16]]


@pytest.mark.parametrize(
    "text",
    [
        "sparsevlm(keep=4, layers=(1, 2, 3))",
        "tome(keep=9) >> fastv(keep=4, layer=2)",
        "visionzip(keep=9) >> fastv(keep=4, layer=2)",
        "mustdrop(global_thr=0.05, individual_thr=0.05, layers=(1, 2, 3), merge=True, window=2)",
        "pyramiddrop(keep=4, layers=(1, 2, 3))",
        "dart(keep=4, layer=2)",
    ],
)
def test_gradients_equal_differences_of_the_loss(text: str) -> None:
    model, make_inputs = tiny_llava(8, layers=4, dtype=torch.float64)
    made_double(model)
    inputs: dict[str, Any] = in_double(make_inputs(BATCHES["two images"]))
    labels = labels_of(model, inputs)
    with prune(model, text) as record:

        def loss() -> Tensor:  # that of the models is in float32
            logits = model(**inputs).logits
            targets = record.calls[-1].cut_labels(labels)
            return cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

        torch.testing.assert_close(loss().float(), model(**inputs, labels=labels).loss, rtol=0, atol=1e-5)
        for seed, group in enumerate(GROUPS):
            told, expected = slope(loss, parameters_of(model, group), seed)
            assert told == pytest.approx(expected, rel=1e-5, abs=1e-7), group
            assert abs(told) > 1e-3, f"nothing flows into the {group}"
    choices = [[image.indices.tolist() for image in call.images] for call in record.calls]
    assert all(choice == choices[0] for choice in choices)
    made = [image for image in record.calls[0].images if image.merged or image.extra_tokens]
    assert all(image.gradient is True for image in made)


def test_the_sum_over_parts_is_divided_by_the_number_given() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    labels = labels_of(model, inputs)
    strategy, stages = CASES["attended"]
    with prune(model, strategy, positions="original"):
        loss = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(100)).loss
        first, *rest = model(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close(
        loss, loss_inside(model, inputs, labels, stages("original"), items=100), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(first, loss_inside(model, inputs, labels, stages("original")), rtol=1e-5, atol=0)
    assert rest[0].shape[0] == 3


@pytest.mark.parametrize(
    "text",
    [
        "fastv(keep=4, layer=2)",
        "pyramiddrop(keep=4, layers=(1, 2, 3))",
        "sparsevlm(keep=4, layers=(1, 2, 3))",
        "fitprune(drops=(5, 3, 0, 2))",
        "vtw(layer=2)",
        "tome(keep=9) >> fastv(keep=4, layer=2)",
        "mustdrop(global_thr=0.05, individual_thr=0.05, layers=(1, 2, 3), merge=True, window=2)",
        *("visionzip(keep=7)", "prumerge()", "tome(keep=9)", "mustdrop_merge(window=2)", "fastervlm(keep=5)"),
    ],
)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_checkpointing_changes_no_gradient(text: str, reentrant: bool, inside: bool) -> None:
    """Layers run a second time in the backward pass, also when the context has been left by then."""
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["two images"])
    labels = labels_of(model, inputs)
    model.train()
    with prune(model, text):
        plain = model(**inputs, labels=labels, use_cache=False)
    plain.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    checkpoint(model, reentrant=reentrant)
    runs: list[int] = []
    mlp = model.model.language_model.layers[2].mlp  # nothing is dropped within it: then it would run once
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    with prune(model, text) as record:
        again = model(**inputs, labels=labels, use_cache=False)
        assert len(runs) == 1
        if inside:
            again.loss.backward()
    if not inside:
        again.loss.backward()
    assert len(runs) == 2, "the layer was not checkpointed"
    torch.testing.assert_close(again.logits, plain.logits, rtol=0, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert len(record.calls) == 1


def test_checkpointing_is_put_back() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    checkpoint(model, reentrant=False)
    model.train()
    layers = [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers]
    model(**inputs, use_cache=False)  # transformers puts hooks of its own on the tower
    before = traces(model), [(layer.gradient_checkpointing, layer._gradient_checkpointing_func) for layer in layers]
    for text in ("fitprune(drops=(5, 3, 0, 2))", "tome(keep=9) >> fastv(keep=4, layer=2)", "prumerge()"):
        with prune(model, text):
            model(**inputs, labels=labels_of(model, inputs), use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)
        after = traces(model), [(layer.gradient_checkpointing, layer._gradient_checkpointing_func) for layer in layers]
        assert after == before


def test_a_loss_function_of_the_callers_own_gets_the_labels_that_are_left() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    seen = []

    def own(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        seen.append((logits.shape[:2], labels))
        return logits.sum()

    model.loss_function = own
    with prune(model, FastV(3, layer=2)) as record:
        model(**inputs, labels=labels_of(model, inputs))
        assert model.loss_function is own
    assert model.loss_function is own
    ((shape, labels),) = seen
    assert shape == labels.shape
    assert torch.equal(labels, record.calls[0].cut_labels(labels_of(model, inputs)))
    with pytest.raises(ValueError, match=r"cut_labels: labels must be \(prompts, columns\)"):
        record.calls[0].cut_labels(labels)


def test_a_failure_leaves_the_loss_function_as_it_was() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    labels = labels_of(model, inputs)
    model(**inputs)  # transformers puts hooks of its own on the tower
    before = traces(model)
    with prune(model, FastV(3, layer=2)):
        with pytest.raises(ValueError, match="batch_size"):  # one logit, all labels: that of transformers
            model(**inputs, labels=labels, logits_to_keep=1)
        assert "_loss_function" not in vars(model)
        expected = model(**inputs, labels=labels).loss
    assert traces(model) == before
    stages = [Stage(2, "original", most_attended(lambda key, left: 3))]
    torch.testing.assert_close(expected, loss_inside(model, inputs, labels, stages), rtol=1e-5, atol=1e-6)


def test_a_model_that_makes_its_loss_otherwise_is_not_believed() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["look at <0> now"])
    plain = model.forward

    def forward(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.loss = output.logits.sum()
        return output

    model.forward = forward
    with prune(model, FastV(3, layer=2)), pytest.raises(RuntimeError, match="did not hand its labels"):
        model(**inputs, labels=labels_of(model, inputs))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str, side: str) -> None:
    """The loss is that of the logits and the columns of the record, checkpointed or not; all parts get a gradient."""
    model, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = make_inputs(FAMILY_BATCHES["padded"], padding_side=side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    visual = torch.isin(ids, torch.tensor(sorted(_placeholders(model))))
    labels = ids.masked_fill(visual | (mask == 0), -100)
    strategy = FastV(4, layer=3) if family in IN_DECODER else parse("random(keep=4)")
    found = []
    for again in (False, True):
        if again:
            checkpoint(model, reentrant=False)
        model.train()
        with prune(model, strategy) as record:
            output = model(**inputs, labels=labels, use_cache=False)
            output.loss.backward()
        found.append(gradients(model))
        model.zero_grad(set_to_none=True)
        columns, losses = record.calls[0].columns, []
        assert columns is not None
        for row in range(len(ids)):
            mine = [(slot, column) for slot, column in enumerate(columns[row].tolist()) if column >= 0]
            for (slot, _), (_, column) in pairwise(mine):
                if labels[row, column] != -100:
                    losses.append(cross_entropy(output.logits[row, slot].float(), labels[row, column]))
        torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    vision = [name for name in found[0] if "vision" in name or "visual" in name]
    assert any(found[0][name].abs().max() > 0 for name in vision)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def _placeholders(model: Any) -> set[int]:
    names = ("image_token_id", "video_token_id")
    return {int(token) for name in names if (token := getattr(model.config, name, None)) is not None}


def test_training_mode_drops_out_and_evaluation_mode_does_not() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    labels = labels_of(model, inputs)
    strategy, stages = CASES["random"]  # chooses by the image alone, so that dropout does not change the choice
    losses = []
    with prune(model, strategy, positions="original"):
        for training in (False, True, True):
            model.train(training)
            torch.manual_seed(1)
            losses.append(model(**inputs, labels=labels).loss.detach())
    assert torch.equal(losses[1], losses[2])
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(
        losses[0], loss_inside(model.eval(), inputs, labels, stages("original")), rtol=1e-5, atol=0
    )


def test_labels_need_one_entry_per_column() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    with prune(model, FastV(3, layer=2)):
        with pytest.raises(ValueError, match="labels must have one entry per prompt column"):
            model(**inputs, labels=labels_of(model, inputs)[:, 1:])
        with pytest.raises(UnsupportedError, match="shift_labels of shape"):
            model(**inputs, labels=labels_of(model, inputs), shift_labels=labels_of(model, inputs))
