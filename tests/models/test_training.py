"""Training with tokens chosen or merged before the language model: derivatives against differences and plain sums."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.models.oracle import BATCHES, ByContent, InPickOrder
from tests.models.tower_oracle import merged_image, tower_llava
from tests.models.training_oracle import (
    GROUPS,
    gradients,
    in_double,
    labels_of,
    loss_of_embeddings,
    made_double,
    parameters_of,
    slope,
)
from tokenprune import PLAIN, Choice, Keep, PruningStrategy, Tokens, parse, prune, prune_inputs, strategies
from tokenprune import strategy as method
from tokenprune.baselines import GridPool
from tokenprune.core import strategy as core
from tokenprune.core.text import example
from tokenprune.models import UnsupportedError
from tokenprune.models.reading.tap import attention_rows
from tokenprune.testing import random_tokens
from tokenprune.testing.tiny.models import tiny_llava

ROWS = BATCHES["two images"]
MERGING = [
    "visionzip(keep=7)",
    "prumerge()",
    "prumerge(keep=5)",
    "prumerge_plus()",
    "prumerge_plus(keep=6)",
    "tome(keep=9)",
    "tome(keep=9, proportional=False)",
    "grid_pool(keep=5)",
    "mustdrop_merge(window=2, threshold=0.3)",
    "visionzip(keep=9) >> greedy_repmax(keep=4)",
    "tome(keep=10) >> visionzip(keep=6)",
    "prompt_budget(visionzip(keep=1.0), keep=0.4, rule='intra')",
    "turn_back",
]
CHOOSING = ["greedy_repmax(keep=6)", "fastervlm(keep=5)", "trim_tokenator(keep=4)"]


@method("turn_back", register=False)
class TurnBack(core.Stage):
    """Weighs every token by its own length and feeds them in falling order: values that depend on the tokens twice."""

    yields = "merged"
    promises = PLAIN - {"ascending"}
    keep: Keep = 0.5

    def choose(self, tokens: Tokens) -> Choice:
        indices = torch.arange(self.count(tokens)).flip(0)
        weights = tokens.visual.square().mean(1)
        return Choice(indices, features=(tokens.visual * weights[:, None])[indices])


def strategy_of(text: str) -> PruningStrategy:
    return TurnBack() if text == "turn_back" else parse(text)


def doubled(padding_side: str) -> tuple[Any, dict[str, Any]]:
    model, make_inputs = tiny_llava(4, dtype=torch.float64)
    made_double(model)
    inputs: dict[str, Any] = in_double(make_inputs(ROWS, padding_side=padding_side))
    return model, {**inputs, "labels": labels_of(model, inputs)}


@pytest.mark.parametrize("text", [*MERGING, *CHOOSING])
@pytest.mark.parametrize(("padding_side", "positions"), [("left", "original"), ("right", "compact")])
def test_gradients_equal_differences_of_the_loss(text: str, padding_side: str, positions: Any) -> None:
    """With the choices held fixed: a step so small changes none of them."""
    model, inputs = doubled(padding_side)
    labels = inputs.pop("labels")
    with prune(model, strategy_of(text), positions=positions) as record:

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
    assert record.images[0].gradient is (None if text in CHOOSING else True)


@pytest.mark.parametrize("text", [*MERGING, *CHOOSING])
def test_both_attention_backends_have_the_same_gradients(text: str) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        model, make_inputs = tiny_llava(4, attn_implementation=attention)
        with prune(model, strategy_of(text)):
            model(**with_labels(model, make_inputs)).loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def check_against(model: Any, strategy: PruningStrategy, inputs: dict[str, Any], features: list[Tensor]) -> None:
    """Loss and every gradient under `prune` equal those of the hand-made features."""
    labels = inputs["labels"]
    with prune(model, strategy, positions="compact") as record:
        loss = model(**inputs).loss
    model.zero_grad()
    loss.backward()
    told = gradients(model)
    model.zero_grad()
    expected = loss_of_embeddings(model, inputs, labels, features, [image.indices for image in record.images])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(told[name], gradient, rtol=1e-4, atol=2e-6, msg=name)
    model.zero_grad()
    for group in GROUPS:
        assert any(told[n].abs().max() > 1e-5 for n, _ in model.named_parameters() if GROUPS[group] in n), group


def with_labels(model: Any, make_inputs: Any, padding_side: str = "left") -> dict[str, Any]:
    inputs = make_inputs(ROWS, padding_side=padding_side)
    return {**inputs, "labels": labels_of(model, inputs)}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_merging_in_the_tower_has_the_gradients_of_plain_loops(kind: str, attention: str) -> None:
    model, make_inputs = tower_llava(kind, attention)
    inputs = with_labels(model, make_inputs)
    merges = [2, 1, 0, 3] if kind == "clip" else [2, 1, 0, 3, 0]
    features = [merged_image(model, image, merges, gradient=True).features for image in inputs["pixel_values"]]
    check_against(model, parse(f"tome(r={tuple(merges)})"), inputs, features)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_pooling_has_the_gradients_of_plain_means(padding_side: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs, padding_side)
    cells = [[4 * (2 * a + i) + 2 * b + j for i in (0, 1) for j in (0, 1)] for a in (0, 1) for b in (0, 1)]
    whole = model.get_image_features(inputs["pixel_values"]).pooler_output
    features = [torch.stack([torch.stack([image[i] for i in cell]).mean(0) for cell in cells]) for image in whole]
    check_against(model, GridPool(keep=4), inputs, features)


def test_dominant_and_contextual_tokens_have_the_gradients_of_plain_sums() -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    layer = model.model.vision_tower.encoder.layers[1]  # its output, hidden_states[-2], goes to the projector
    heads = layer.self_attn.num_heads
    features = []
    for before, after in zip(states[-3], states[-2], strict=True):
        normed = layer.layer_norm1(before)
        query, keys = (p(normed).unflatten(-1, (heads, -1)) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        logits = torch.einsum("he,phe->hp", query[0], keys) / keys.shape[-1] ** 0.5
        attention = logits.softmax(-1)[:, 1:].sum(0)
        dominant = sorted(sorted(range(16), key=lambda i: -float(attention[i].detach()))[:8])
        rest = [i for i in range(16) if i not in dominant]  # 10 tokens: CLS, 8 patches, 1 that stands for the rest
        rows = [after[0], *(after[1 + i] for i in dominant)]
        rows.append(after[1 + rest[0]] + torch.stack([after[1 + i] for i in rest[1:]]).mean(0))
        features.append(model.model.multi_modal_projector(torch.stack(rows)))
    check_against(model, parse("visionzip(keep=10)"), inputs, features)


@pytest.mark.parametrize("text", MERGING)
def test_steps_of_an_optimiser_move_the_projector_and_the_loss_falls(text: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    before = [parameter.detach().clone() for parameter in projector.parameters()]
    optimiser = torch.optim.SGD(projector.parameters(), lr=1e-3)
    losses = []
    with prune(model, strategy_of(text)) as record:
        for _ in range(6):
            loss = model(**inputs).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-3
    assert all(not torch.equal(old, new) for old, new in zip(before, projector.parameters(), strict=True))
    assert all(image.gradient for image in record.images)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "projector" not in name)


@pytest.mark.parametrize("learns", GROUPS)
@pytest.mark.parametrize("text", ["visionzip(keep=7)", "prumerge()", "tome(keep=9)", "grid_pool(keep=5)"])
def test_only_what_the_caller_lets_learn_gets_a_gradient(text: str, learns: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(GROUPS[learns] in name)
    with prune(model, text):
        model(**inputs).loss.backward()
    found = {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
    assert found
    assert all(GROUPS[learns] in name for name in found)


@pytest.mark.parametrize("text", [*MERGING, *CHOOSING])
def test_the_logits_are_the_same_with_and_without_gradients(text: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    with prune(model, strategy_of(text)) as record:
        learning = model(**inputs)
        with torch.no_grad():
            plain = model(**inputs)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        frozen = model(**inputs)
    for other in (plain, frozen):
        torch.testing.assert_close(learning.logits.detach(), other.logits, rtol=0, atol=1e-6)
        assert not other.logits.requires_grad
    first, *others = [[image.indices.tolist() for image in call.images] for call in record.calls]
    assert all(indices == first for indices in others)
    assert [call.images[0].gradient for call in record.calls] == (
        [None] * 3 if text in CHOOSING else [True, None, False]
    )


@pytest.mark.parametrize("text", [*MERGING, *CHOOSING])
def test_arguments_made_by_hand_have_the_same_gradients(text: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    with prune(model, strategy_of(text)):
        model(**inputs).loss.backward()
    told = gradients(model)
    model.zero_grad()
    # `prune_inputs` counts positions as `generate` does, from the first token: rotations do not tell the difference.
    model(**prune_inputs(model, strategy_of(text), **inputs)).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(told[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@method("rounded", register=False)
class Rounded(TurnBack):
    """Makes tokens by arithmetic that torch cannot follow, and says so."""

    promises = PLAIN - {"ascending", "differentiable"}

    def choose(self, tokens: Tokens) -> Choice:
        made = torch.from_numpy(tokens.visual.numpy().round(1)[:4])
        return Choice(torch.arange(4), features=made)

    def requested(self, tokens: Tokens) -> int:
        return 4


def test_tokens_without_a_gradient_are_constants_and_the_record_says_so() -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    with prune(model, Rounded()) as record:
        with pytest.warns(UserWarning, match="rounded.* makes new tokens through which no gradient flows"):
            model(**inputs).loss.backward()
        with torch.no_grad():
            model(**inputs)
    assert [call.images[0].gradient for call in record.calls] == [False, None]
    found = gradients(model)
    assert all(found[name].abs().max() == 0 for name in found if "projector" in name)
    assert found["lm_head.weight"].abs().max() > 0
    assert record.to_dict()["calls"][0]["images"][0]["gradient"] is False


@pytest.mark.parametrize(
    "text",
    [
        *("visionzip(keep=5)", "prumerge(keep=5)", "grid_pool(keep=4)", "tome(keep=6)", "trim(keep=5, plus=True)"),
        "turn_back",
    ],
)
def test_tokens_made_outside_of_a_model_are_connected_to_what_they_are_made_of(text: str) -> None:
    """`torch.autograd.gradcheck` compares with differences in every entry of every signal."""
    plain = random_tokens(4, 4, width=3, dtype=torch.float64)
    strategy = strategy_of(text)
    names = ("visual", "vision_states", "vision_cls", "vision_last_keys", "vision_last_cls", "vision_keys")
    assert strategy.select(plain).features is not None
    assert not strategy.select(plain).features.requires_grad  # type: ignore[union-attr]
    values = [getattr(plain, name).clone().requires_grad_() for name in names]

    def with_fields(given: Sequence[Tensor]) -> Tokens:
        return replace(plain, **dict(zip(names, given, strict=True)))  # type: ignore[arg-type]

    def made(*given: Tensor) -> Tensor:
        features = strategy.select(with_fields(given)).features
        assert features is not None
        return features

    assert torch.autograd.gradcheck(made, values, eps=1e-6, atol=1e-5)
    attached = strategy.select(with_fields(values))
    assert torch.equal(attached.indices, strategy.select(plain).indices)
    assert torch.equal(attached.features.detach(), strategy.select(plain).features)  # type: ignore[union-attr,arg-type]
    with torch.no_grad():
        assert not made(*values).requires_grad


@pytest.mark.parametrize("strategy", [example(cls) for _, cls in sorted(strategies().items())], ids=repr)
def test_mixed_precision_changes_no_choice(strategy: PruningStrategy) -> None:
    """Under autocast products would be rounded to eight bits, those that decide too."""
    for seed in range(5):
        tokens = random_tokens(8, 8, width=24, seed=seed)
        expected = strategy.select(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            told = strategy.select(tokens)
        assert torch.equal(told.indices, expected.indices)
        for mine, theirs in ((told.features, expected.features), (told.extra, expected.extra)):
            if theirs is not None:
                assert mine is not None
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_attention_is_read_in_full_precision_under_autocast() -> None:
    query, key = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.autocast("cpu", torch.bfloat16):
        told = attention_rows(query, key, 0.5)
    torch.testing.assert_close(told, attention_rows(query, key, 0.5), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("text", [*MERGING, *CHOOSING])
def test_mixed_precision_trains(text: str) -> None:
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    with prune(model, strategy_of(text)):
        plain = model(**inputs).loss
        plain.backward()
        expected = gradients(model)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
    assert abs(float(loss.detach() - plain.detach())) < 0.5
    for group in GROUPS:
        names = [name for name in expected if GROUPS[group] in name]
        found = gradients(model)
        assert any(found[name].abs().max() > 0 for name in names), group


def test_frozen_choices_of_merging_methods_are_not_trained_with() -> None:
    """A token that was made with the weights of an earlier step is neither right nor connected."""
    model, make_inputs = tiny_llava(4)
    inputs = with_labels(model, make_inputs)
    with prune(model, "grid_pool(keep=4)", turns="freeze"):
        model(**inputs).loss.backward()
        with pytest.raises(UnsupportedError, match="turns='freeze' would use the tokens again that grid_pool"):
            model(**inputs)
        with torch.no_grad():
            model(**inputs)
    with prune(model, ByContent(), turns="freeze"):
        for _ in range(2):
            model(**inputs).loss.backward()


@pytest.mark.parametrize("strategy", [ByContent(), InPickOrder(), GridPool(4)], ids=repr)
def test_parts_of_a_batch_add_up_to_the_whole(strategy: PruningStrategy) -> None:
    """As in gradient accumulation: sums over parts, divided by the number of labels of all of them."""
    model, make_inputs = tiny_llava(4)
    rows = [BATCHES["padded"][:2], BATCHES["padded"][2:]]
    parts = [make_inputs(prompts) for prompts in rows]
    labels = [labels_of(model, part) for part in parts]
    labels = [
        told.masked_fill(part["attention_mask"].cumsum(1) == 1, -100) for told, part in zip(labels, parts, strict=True)
    ]
    items = sum((told != -100).sum() for told in labels)
    whole = make_inputs(BATCHES["padded"])
    with prune(model, strategy):
        for part, told in zip(parts, labels, strict=True):
            model(**part, labels=told, num_items_in_batch=items).loss.backward()
        apart = gradients(model)
        model.zero_grad()
        model(**whole, labels=labels_of(model, whole)).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_labels_of_images_are_not_counted_without_a_word() -> None:
    model, make_inputs = tiny_llava(4)
    inputs = make_inputs(ROWS)
    with prune(model, ByContent()):
        model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match="labels has entries other than -100 at image placeholders"):
            model(**inputs, labels=inputs["input_ids"], num_items_in_batch=torch.tensor(40))


def test_sequences_packed_into_one_row_are_refused() -> None:
    model, make_inputs = tiny_llava(4)
    inputs = make_inputs(["look at <0> now"])
    length = inputs["input_ids"].shape[1]
    places = torch.cat([torch.arange(length - 2), torch.arange(2)])[None]
    inputs.pop("attention_mask")
    with prune(model, ByContent()):
        for packed in (
            {"position_ids": places},
            {"cu_seq_lens_q": torch.tensor([0, length - 2, length])},
            {"max_length_k": length - 2},
        ):
            with pytest.raises(UnsupportedError, match="packed into one row"):
                model(**inputs, **packed)
        model(**inputs, position_ids=2 * torch.arange(length)[None])
    with pytest.raises(UnsupportedError, match="packed into one row"):
        prune_inputs(model, ByContent(), **{**inputs, "position_ids": places})  # type: ignore[arg-type]
