"""The building blocks: signals of the vision tower, the dense prompt, cutting it, adapters of other packages."""

import random
from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.oracle import (
    BATCHES,
    EVERYTHING,
    TOWER,
    ByContent,
    InPickOrder,
    KeepAll,
    features_of,
    named,
    of,
    tiny,
    traces,
)
from tokenprune import Selection, prune
from tokenprune.core.places import Positions
from tokenprune.core.signals import Signal
from tokenprune.models import Adapter, Vision, adapter_for, build_prompt, compact, select_tokens
from tokenprune.models.families import registry as families
from tokenprune.models.families.llava import LlavaAdapter
from tokenprune.models.prompt.dense import Prompt, Segment
from tokenprune.models.reading.tap import attention_rows, tap
from tokenprune.models.reading.vision import image_keys
from tokenprune.testing import random_image, tiny_llava


def encoded(attention: str = "sdpa", want: Collection[Signal] = EVERYTHING) -> tuple[Any, dict[str, Tensor], Vision]:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES["two images"])
    with torch.no_grad():
        return model, inputs, adapter_for(model).encode(inputs, want)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_signals_equal_those_of_the_eager_tower(attention: str) -> None:
    model, inputs, vision = encoded(attention)
    eager = tiny("eager")[0].model.vision_tower
    keys, queries = {}, {}
    hooks = []
    for i, layer in enumerate(eager.encoder.layers):
        hooks.append(layer.self_attn.k_proj.register_forward_hook(lambda m, a, out, i=i: keys.update({i: out})))
        hooks.append(layer.self_attn.q_proj.register_forward_hook(lambda m, a, out, i=i: queries.update({i: out})))
    with torch.no_grad():
        output = eager(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    expected = {
        "cls_attention": output.attentions[-2][:, :, 0, 1:],
        "cls_attention_first": output.attentions[0][:, :, 0, 1:],
        "cls_attention_last": output.attentions[-1][:, :, 0, 1:],
        "vision_states": output.hidden_states[-2][:, 1:],
        "vision_cls": output.hidden_states[-2][:, :1],
        "vision_keys": keys[1].unflatten(-1, (3, 8)).mean(2)[:, 1:],
        "vision_last_keys": keys[2][:, 1:],
        "vision_last_cls": torch.stack([queries[2][:, 0], keys[2][:, 0]], 1),
    }
    assert set(expected) == set(TOWER)
    for name, value in expected.items():
        # Attention lies in [0, 1]; the states are of size 5, and SDPA rounds otherwise than eager in the layers before.
        bound = 1e-6 if name.startswith("cls_attention") or attention == "eager" else 1e-5
        assert (torch.stack(of(vision, name)) - value).abs().max() <= bound, name
    features = features_of(model, inputs)
    assert torch.equal(vision.features, torch.cat(features))
    assert of(vision, "project") is not None
    assert of(vision, "vision_states") is not None
    torch.testing.assert_close(of(vision, "project")[0](of(vision, "vision_states")[1]), features[1])


def test_signals_come_only_when_wanted_and_leave_nothing() -> None:
    model, _ = tiny()
    encoded()
    before = traces(model)
    _, _, vision = encoded(want=named("text", "grid"))
    assert all(of(vision, name) is None for name in (*TOWER, "key", "project"))
    _, _, vision = encoded(want=named("cls_attention"))
    assert [name for name in TOWER if of(vision, name) is not None] == ["cls_attention"]
    assert traces(model) == before


def test_signals_of_the_same_module_share_a_tap() -> None:
    model, make_inputs = tiny()
    inputs: dict[str, Any] = make_inputs(["see <0> there"])
    vision = adapter_for(model).encode({**inputs, "vision_feature_layer": -1}, EVERYTHING)
    assert of(vision, "vision_keys") is not None
    assert of(vision, "vision_last_keys") is not None
    torch.testing.assert_close(
        of(vision, "vision_last_keys")[0].unflatten(-1, (3, 8)).mean(1), of(vision, "vision_keys")[0]
    )
    both = adapter_for(model).encode({**inputs, "vision_feature_layer": 2}, EVERYTHING)
    same = adapter_for(model).encode({**inputs, "vision_feature_layer": -2}, EVERYTHING)
    assert torch.equal(of(both, "cls_attention")[0], of(same, "cls_attention")[0])


def test_grouped_attention_rows_and_a_second_tap() -> None:
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8)
    rows = attention_rows(query, key, 0.5)
    single = torch.softmax(query[1, 3, 2] @ key[1, 1].T * 0.5, -1)
    torch.testing.assert_close(rows[1, 3, 2], single)
    module = tiny()[0].model.language_model.layers[1].self_attn
    with tap(module, lambda q, k, s: None), pytest.raises(RuntimeError, match="being read already"), tap(module, fail):
        pass


def fail(*args: Any) -> None:
    raise AssertionError


def test_a_tap_on_a_decoder_layer_equals_eager() -> None:
    fast, make_inputs = tiny()
    inputs = make_inputs(["some words without an image"])
    with (
        torch.no_grad(),
        tap(fast.model.language_model.layers[1].self_attn, lambda *q: attention_rows(q[0][:, :, -1:], *q[1:])) as seen,
    ):
        logits = fast(**inputs).logits
    eager = tiny("eager")[0](**inputs, output_attentions=True)
    assert (seen[0] - eager.attentions[1][:, :, -1:]).abs().max() <= 1e-6
    assert torch.equal(logits, fast(**inputs).logits)


def test_keys_tell_images_apart_and_nothing_else() -> None:
    pixels = torch.stack([random_image(i) for i in range(64)])
    keys = image_keys(pixels)
    assert len(set(keys)) == 64
    assert image_keys(pixels.flip(0)) == keys[::-1]
    assert image_keys(pixels[5:6]) == keys[5:6]
    assert image_keys(pixels.to(torch.bfloat16)) == keys
    moved = pixels.roll(1, dims=-1)
    assert not set(image_keys(moved)) & set(keys)


def test_tokens_of_a_prompt() -> None:
    model, inputs, vision = encoded()
    prompt = build_prompt(adapter_for(model), inputs, vision)
    tokens = prompt.tokens()
    assert [(s.row, s.image, s.grid) for s in prompt.segments] == [(0, 0, (4, 4)), (0, 1, (4, 4)), (1, 0, (4, 4))]
    embed = model.get_input_embeddings()
    for i, one in enumerate(tokens):
        row = prompt.segments[i].row
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        text = ids[ids != model.config.image_token_id]
        assert one.text is not None
        assert one.question is not None
        assert torch.equal(one.visual, vision.features.split(16)[i])
        assert torch.equal(one.text, embed(text))
        last = int((ids == model.config.image_token_id).nonzero()[-1])
        assert int(one.question.sum()) == len(ids) - 1 - last
        assert bool(one.question[len(text) - (len(ids) - 1 - last) :].all())
        assert one.grid == (4, 4)
        assert not one.visual.requires_grad
    assert len({one.key for one in tokens}) == 3


def test_select_tokens_and_the_pruned_prompt() -> None:
    model, inputs, vision = encoded()
    prompt = build_prompt(adapter_for(model), inputs, vision)
    selections, seconds = select_tokens(ByContent(), prompt)
    assert seconds > 0
    with prune(model, ByContent()) as record:
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert [s.indices.tolist() for s in selections] == [i.indices.tolist() for i in record.images]
    pruned = compact(prompt, selections)
    sequences = model.generate(**pruned.generate_kwargs(), max_new_tokens=4, do_sample=False)
    assert torch.equal(pruned.restore(sequences), expected)
    with pytest.raises(ValueError, match="2 selections for 3 images"):
        compact(prompt, selections[:2])
    with pytest.raises(ValueError, match="selection 0 is of 9 tokens but the image has 16"):
        compact(prompt, [Selection(indices=torch.tensor([0]), total=9), *selections[1:]])
    with pytest.raises(ValueError, match="positions must be one of"):
        compact(prompt, selections, positions="other")  # type: ignore[arg-type]
    assert select_tokens(ByContent(), build_prompt(adapter_for(model), tiny()[1](["only text"]))) == ([], 0.0)


def naive(prompt: Prompt, selections: list[Selection], policy: str) -> list[list[tuple[int, int]]]:
    """For each row (column, position) of every slot, by loops."""
    rows = []
    for row in range(prompt.ids.shape[0]):
        placed = {int(c): int(c) for c in prompt.text[row]}
        for segment, selection in zip(prompt.segments, selections, strict=True):
            if segment.row == row:
                columns = [int(segment.columns[i]) for i in selection.indices]
                placed.update(dict(zip(sorted(columns), columns, strict=True)))
        order = [placed[slot] for slot in sorted(placed)]
        first = int(prompt.positions[row, int(prompt.mask[row].nonzero()[0])])
        places = (
            [int(prompt.positions[row, c]) for c in order] if policy == "original" else range(first, first + len(order))
        )
        rows.append(list(zip(order, places, strict=True)))
    return rows


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from(["original", "compact"]), ordered=st.booleans())
def test_cutting_equals_loops(seed: int, policy: Positions, ordered: bool) -> None:
    draw = random.Random(seed)
    length = draw.randint(4, 14)
    rows = draw.randint(1, 3)
    ids = torch.randint(10, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(rows, length, dtype=torch.bool)
    segments, selections, text = [], [], []
    for row in range(rows):
        pad = draw.randint(0, length - 3)
        mask[row, : pad if draw.random() < 0.7 else 0] = False
        free = mask[row].nonzero().flatten().tolist()[1:]  # the first column is text
        taken: set[int] = set()
        for image in range(draw.randint(0, 2)):
            choice = sorted(set(draw.sample(free, draw.randint(1, len(free)))) - taken)  # columns may interleave
            if choice:
                taken |= set(choice)
                kept = draw.sample(range(len(choice)), draw.randint(1, len(choice)))
                segments.append(Segment(row=row, image=image, columns=torch.tensor(choice), grid=None))
                selections.append(Selection(indices=torch.tensor(sorted(kept) if ordered else kept), total=len(choice)))
        text.append(torch.tensor([c for c in mask[row].nonzero().flatten().tolist() if c not in taken]))
    prompt = Prompt(
        ids=ids,
        embeds=torch.randn(rows, length, 3),
        mask=mask,
        positions=(mask.long().cumsum(1) - 1 + draw.randint(0, 3)).clamp(min=0),
        segments=tuple(segments),
        text=tuple(text),
        left_padded=True,
        labels=ids + 100,
    )
    pruned = compact(prompt, selections, positions=policy, shortcut=draw.random() < 0.5)
    assert pruned.labels is not None
    for row, expected in enumerate(naive(prompt, selections, policy)):
        real = pruned.mask[row].bool()
        columns = pruned.columns[row][real].tolist()
        assert columns == [column for column, _ in expected]
        assert pruned.positions[row][real].tolist() == [place for _, place in expected]
        assert bool((pruned.mask[row].diff() >= 0).all()), "padded on the left"
        assert torch.equal(pruned.embeds[row][real], prompt.embeds[row, columns])
        assert torch.equal(pruned.ids[row][real], ids[row, columns])
        untouched = pruned.embeds is prompt.embeds
        assert pruned.labels[row][real].tolist()[1:] == (ids[row, columns] + 100).tolist()[1:]
        if not untouched:
            assert pruned.labels[row][real][0] == -100
            assert set(pruned.labels[row][~real].tolist()) <= {-100}
            assert not pruned.embeds[row][~real].any()


def test_features_of_merging_methods_take_the_place_of_their_tokens() -> None:
    model, inputs, vision = encoded()
    prompt = build_prompt(adapter_for(model), inputs, vision)
    new = torch.randn(2, 32)
    plain = Selection(indices=torch.tensor([3]), total=16)
    pruned = compact(prompt, [plain, Selection(indices=torch.tensor([9, 2]), total=16, features=new), plain])
    found = [i for i in range(pruned.embeds.shape[1]) if any(torch.equal(pruned.embeds[0, i], row) for row in new)]
    assert len(found) == 2
    assert torch.equal(pruned.embeds[0, found[0]], new[0]), "in the order of the indices"
    before = vision.features.clone()
    assert torch.equal(vision.features, before), "the dense prompt is not written to"
    assert not any(torch.equal(prompt.embeds[0, i], new[0]) for i in range(prompt.embeds.shape[1]))


class OtherFamily(Adapter):
    """An adapter of another package, for the same kind of model under another name."""

    model_types = frozenset({"other_family"})

    def encode(self, inputs: Mapping[str, Any], want: Collection[Signal] = frozenset()) -> Vision:
        return LlavaAdapter(self.model).encode(inputs, want)


def renamed() -> tuple[Any, Any]:
    model, make_inputs = tiny_llava(5)
    model.config.model_type = "other_family"
    return model, make_inputs


def test_an_adapter_from_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = renamed()
    with pytest.raises(ValueError, match="no adapter for the model family 'other_family'"):
        adapter_for(model)
    point = EntryPoint("other", f"{__name__}:OtherFamily", families.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: OtherFamily)
    monkeypatch.setattr(families, "entry_points", lambda group: [point])
    with prune(model, KeepAll()) as record:
        model.generate(**make_inputs(["see <0> there"]), max_new_tokens=2)
    assert len(record.images) == 1
    monkeypatch.setattr(EntryPoint, "load", lambda self: int)
    with pytest.raises(TypeError, match="entry point 'other' .* is no concrete Adapter"):
        adapter_for(model)
    monkeypatch.setattr(EntryPoint, "load", fail)
    with pytest.raises(TypeError, match="failed to load"):
        adapter_for(model)


def test_an_adapter_registered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = renamed()
    monkeypatch.setattr(families, "_registered", [])
    assert families.register_adapter(OtherFamily) is OtherFamily
    assert isinstance(adapter_for(model), OtherFamily)
    with pytest.raises(TypeError, match="is no concrete Adapter subclass"):
        families.register_adapter(Adapter)  # type: ignore[type-abstract]


def test_an_adapter_with_features_that_do_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="1 images with 5 tokens and 1 grids do not fit 4 rows of features"):
        Vision(features=torch.zeros(4, 2), counts=(5,), grids=(None,))


def test_placeholders_outside_the_vocabulary_are_embedded_as_token_zero() -> None:
    model, make_inputs = tiny_llava(6)
    inputs = make_inputs(["see <0> there"])
    with prune(model, InPickOrder()):
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
    beyond = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, 500)
    model.config.image_token_id = 500
    with prune(model, InPickOrder()):
        given = model.generate(**{**inputs, "input_ids": beyond}, max_new_tokens=3, do_sample=False)
    assert torch.equal(given[:, -3:], expected)
