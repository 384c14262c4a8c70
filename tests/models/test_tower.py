"""Merging inside the vision tower: features, signals and every decoding step against plain loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.oracle import BATCHES, named, of, traces
from tests.models.tower_oracle import Merged, merged_image, tower_llava
from tokenprune import GreedyRepMax, PruningStrategy, Selection, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import FasterVLM, FastV, GridPool, Random, ToMe
from tokenprune.baselines.fastervlm import fastervlm
from tokenprune.core import places
from tokenprune.core.merging import Merging
from tokenprune.core.places import Positions
from tokenprune.models import Record, UnsupportedError, adapter_for, build_prompt, prune_inputs, select_tokens
from tokenprune.models.encode.clip import see
from tokenprune.models.encode.tower import encode_merged
from tokenprune.testing import random_tokens
from tokenprune.testing.reference import reference_logits
from tokenprune.testing.tiny.families import tiny_families, tiny_model

USED = {"clip": 4, "siglip": 5}
"""Layers up to the one whose output the projector gets."""

STRATEGIES: list[ToMe] = [ToMe(5), ToMe(0.5), ToMe(r=3), ToMe(r=(2, -1.0)), ToMe(r=[6]), ToMe(7, proportional=False)]


def expected(kind: str, strategy: ToMe, pixels: Tensor, attention: str = "sdpa") -> list[Merged]:
    model = tower_llava(kind, attention)[0]
    merges = strategy.schedule(USED[kind], patches=16, prefix=int(kind == "clip"))
    return [merged_image(model, image, merges, proportional=strategy.proportional) for image in pixels]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_features_are_those_of_the_loop(kind: str, attention: str, strategy: ToMe) -> None:
    model, make_inputs = tower_llava(kind, attention)
    inputs = make_inputs(BATCHES["two images"])
    with torch.no_grad():
        vision = encode_merged(adapter_for(model), inputs, named("vision_keys", "cls_attention", "key"), strategy)
    assert vision.counts == (16,) * 3
    assert vision.grids == ((4, 4),) * 3
    assert of(vision, "tower_size") is not None
    assert of(vision, "vision_keys") is not None
    for i, (rows, wanted) in enumerate(
        zip(vision.features.split(16), expected(kind, strategy, inputs["pixel_values"], attention), strict=True)
    ):
        size = of(vision, "tower_size")[i][0]
        assert size.nonzero().flatten().tolist() == wanted.places
        assert size[wanted.places].tolist() == wanted.sizes
        torch.testing.assert_close(rows[wanted.places], wanted.features, atol=1e-5, rtol=0)
        torch.testing.assert_close(of(vision, "vision_keys")[i][wanted.places], wanted.keys, atol=1e-5, rtol=0)
        if kind == "clip":
            assert of(vision, "cls_attention") is not None
            assert wanted.cls_attention is not None
            found = of(vision, "cls_attention")[i][:, wanted.places]
            torch.testing.assert_close(found, wanted.cls_attention, atol=1e-5, rtol=0)
        assert sum(wanted.sizes) == 16
        assert max(wanted.sizes) > 1


def check(
    model: Any,
    inputs: dict[str, Tensor],
    strategy: PruningStrategy,
    positions: Positions,
    wanted: list[Merged],
    kept: Callable[[int, Merged], list[int]] = lambda _, merged: merged.places,
) -> Record:
    """Every step's logits equal the loop's; `kept` says which of the merged tokens are left."""
    with prune(model, strategy, positions=positions) as record:
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    logits = torch.stack(out.logits, dim=1)
    for row, ids in enumerate(inputs["input_ids"]):
        mine = [i for i, image in enumerate(record.images) if image.prompt == row]
        features, indices = [], []
        for i in mine:
            full = torch.zeros(16, wanted[i].features.shape[1])
            full[wanted[i].places] = wanted[i].features
            features.append(full)
            indices.append(torch.tensor(kept(i, wanted[i])))
            assert record.images[i].indices.tolist() == indices[-1].tolist()
        real = ids[inputs["attention_mask"][row].bool()]
        reference = reference_logits(model, real, features, indices, positions=positions, steps=4)
        assert (logits[row] - reference.logits).abs().max() <= 1e-5
    return record


@pytest.mark.parametrize("batch", ["padded", "two images", "one row", "side by side"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_step_equals_the_loop(kind: str, positions: Positions, batch: str) -> None:
    model, make_inputs = tower_llava(kind)
    inputs, strategy = make_inputs(BATCHES[batch]), ToMe(6)
    wanted = expected(kind, strategy, inputs["pixel_values"])
    record = check(model, inputs, strategy, positions, wanted)
    for image, merged in zip(record.images, wanted, strict=True):
        assert (image.tokens_in, image.tokens_kept, image.requested) == (16, 6, 6)
        assert image.sizes == tuple(merged.sizes)
        assert (image.site, image.merged, image.positions) == ("tower", True, positions)


def test_stages_at_all_three_sites() -> None:
    """Merge in the tower, choose before the language model by a signal of the merged tokens, cut inside it."""
    model, make_inputs = tower_llava()
    inputs = make_inputs(BATCHES["padded"])
    wanted = expected("clip", ToMe(9), inputs["pixel_values"])

    def most_attended(_: int, merged: Merged) -> list[int]:
        assert merged.cls_attention is not None
        chosen = fastervlm(merged.cls_attention[None], 5)[0]
        return [merged.places[i] for i in chosen.tolist()]

    record = check(model, inputs, ToMe(9) >> FasterVLM(5), "compact", wanted, most_attended)
    assert all(len(image.sizes) == 5 for image in record.images)
    with prune(model, ToMe(9) >> FasterVLM(5) >> FastV(2, layer=1)) as record:
        model.generate(**inputs, max_new_tokens=2)
    for i, image in enumerate(record.images):
        assert [(stage.tokens_in, stage.tokens_out) for stage in image.stages] == [(16, 9), (9, 5), (5, 2)]
        assert set(image.indices.tolist()) <= set(most_attended(i, wanted[i]))
        assert image.layer_tokens == (5, 2)


def test_diversity_among_merged_tokens() -> None:
    model, make_inputs = tower_llava()
    inputs = make_inputs(BATCHES["two images"])
    wanted = expected("clip", ToMe(8), inputs["pixel_values"])

    def spread(_: int, merged: Merged) -> list[int]:
        return [merged.places[i] for i in GreedyRepMax(3).select(Tokens(merged.features)).indices.tolist()]

    check(model, inputs, ToMe(8) >> GreedyRepMax(3), "original", wanted, spread)


def test_a_batch_equals_single_rows() -> None:
    model, make_inputs = tower_llava()
    prompts = BATCHES["padded"]
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with prune(model, ToMe(5)) as together:
        many = torch.stack(model.generate(**make_inputs(prompts), **settings).logits, dim=1)
    for row, prompt in enumerate(prompts):
        with prune(model, ToMe(5)) as alone:
            one = torch.stack(model.generate(**make_inputs([prompt]), **settings).logits, dim=1)
        assert (many[row] - one[0]).abs().max() <= 1e-5
        assert alone.images[0].indices.tolist() == together.images[row].indices.tolist()


def test_merging_nothing_is_the_plain_model_to_the_last_bit() -> None:
    model, make_inputs = tower_llava()
    inputs = make_inputs(BATCHES["padded"])
    plain, generated = model(**inputs).logits, model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for strategy in (ToMe(1.0), ToMe(r=0)):
        with prune(model, strategy):
            assert torch.equal(model(**inputs).logits, plain)
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), generated)


@method("uneven", register=False)
class Uneven(Merging):
    """Merges in pairs behind the first layer: as many pairs as the image's own content says."""

    place = places.InTower("layer")

    def requested(self, tokens: Tokens) -> int | None:
        return None

    def merge(self, layer: int, layers: int, state: Any, keys: Any, *, prefix: int, patches: int) -> Any:
        from tokenprune.core.merging import Merge

        if layer != 0:
            return None
        pairs = 1 + int(state.x[prefix].abs().sum() * 100) % 6
        rows = torch.arange(len(state.x))
        row_of = torch.where(rows < prefix + 2 * pairs, (rows - prefix) // 2 + prefix, rows - pairs)
        row_of[:prefix] = rows[:prefix]
        place = torch.cat([rows[:prefix], rows[prefix : prefix + 2 * pairs : 2], rows[prefix + 2 * pairs :]])
        return Merge(row_of, place)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_images_of_one_batch_may_end_with_different_numbers_of_tokens(kind: str) -> None:
    model, make_inputs = tower_llava(kind)
    prompts = ["<0> a", "<1> a", "<2> a", "<3> a", "<4> a"]
    want = named("cls_attention", "vision_keys", "vision_states", "vision_last_keys", "cls_attention_first")
    with torch.no_grad():
        together = encode_merged(adapter_for(model), make_inputs(prompts), want, Uneven())
        alone = [encode_merged(adapter_for(model), make_inputs([prompt]), want, Uneven()) for prompt in prompts]
    assert of(together, "tower_size") is not None
    assert len({int((size > 0).sum()) for size in of(together, "tower_size")}) > 1
    for i, single in enumerate(alone):
        torch.testing.assert_close(together.features.split(16)[i], single.features, atol=1e-5, rtol=0)
        for name in (*(signal.name for signal in want), "tower_size"):
            if of(single, name) is not None:
                torch.testing.assert_close(of(together, name)[i], of(single, name)[0], atol=1e-5, rtol=0)


def test_attention_of_the_first_layer_adds_up_over_everything_merged_since() -> None:
    model, make_inputs = tower_llava()
    inputs, adapter = make_inputs(["<0> a"]), adapter_for(model)
    wanted = expected("clip", ToMe(5), inputs["pixel_values"])[0]
    with torch.no_grad():
        plain = of(adapter.encode(inputs, named("cls_attention_first")), "cls_attention_first")
        merged = of(see(adapter, inputs, named("cls_attention_first"), ToMe(5)), "cls_attention_first")
    assert plain is not None
    assert merged is not None
    sums = torch.stack([plain[0][:, members].sum(1) for members in wanted.members], dim=1)
    torch.testing.assert_close(merged[0][:, wanted.places], sums, atol=1e-6, rtol=0)


def test_nothing_stays_on_the_model_also_after_errors() -> None:
    model, make_inputs = tower_llava()
    inputs, before = make_inputs(BATCHES["padded"]), traces(model)
    with prune(model, ToMe(5)):
        model.generate(**inputs, max_new_tokens=2)
    assert traces(model) == before
    layer = model.model.vision_tower.encoder.layers[2]
    handle = layer.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), prune(model, ToMe(5)):
        model.generate(**inputs, max_new_tokens=2)
    handle.remove()
    assert traces(model) == before
    assert "forward" not in vars(layer)


def test_a_forward_that_somebody_put_on_a_layer_comes_back() -> None:
    model, make_inputs = tower_llava()
    layer = model.model.vision_tower.encoder.layers[0]
    own = layer.forward
    layer.forward = own
    try:
        with prune(model, ToMe(5)):
            model.generate(**make_inputs(["<0> a"]), max_new_tokens=1)
        assert vars(layer)["forward"] is own
    finally:
        del layer.forward


def test_a_layer_that_is_not_called_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tower_llava()
    monkeypatch.setattr(adapter_for(model).__class__, "tower_use", _use_of_other_layers)
    with pytest.raises(RuntimeError, match=r"did not fire .* ran \[0, 0\] times for 1 images"), prune(model, ToMe(5)):
        model.generate(**make_inputs(["<0> a"]), max_new_tokens=1)


def _use_of_other_layers(self: Any, inputs: Any) -> Any:
    from tokenprune.models.families.adapter import TowerUse

    other = tower_llava("clip", "eager")[0].model.vision_tower.encoder.layers
    return TowerUse(layers=tuple(other[:2]), prefix=1, crop=1, grid=(4, 4))


def test_the_pure_function_merges_too() -> None:
    model, make_inputs = tower_llava()
    inputs: dict[str, Any] = dict(make_inputs(["what is in <0> then"]))
    with prune(model, ToMe(5)) as record:
        logits = model(**inputs).logits
    pruned = prune_inputs(model, ToMe(5), **inputs)
    assert pruned["inputs_embeds"].shape[1] == record.calls[0].columns_kept
    torch.testing.assert_close(model(**pruned).logits, logits)


def test_what_cannot_be_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tower_llava()
    inputs = make_inputs(["<0> a"])
    with (
        pytest.raises(ValueError, match=r"keep=1 of 16 patches is out of reach in 1 layers .* at least 8 stay"),
        prune(model, ToMe(1)),
    ):
        model.generate(**inputs, vision_feature_layer=1, max_new_tokens=1)
    with pytest.raises(UnsupportedError, match="puts states of several layers side by side"), prune(model, ToMe(5)):
        model.generate(**inputs, vision_feature_layer=[-2, -1], max_new_tokens=1)
    with pytest.raises(UnsupportedError, match="0 layers come before it"), prune(model, ToMe(5)):
        model.generate(**inputs, vision_feature_layer=0, max_new_tokens=1)
    siglip, _ = tower_llava("siglip")
    with pytest.raises(UnsupportedError, match="1 rows are cut off, of which 0 are no patches"), prune(siglip, ToMe(5)):
        siglip(**inputs, vision_feature_select_strategy="default")
    layer = model.model.vision_tower.encoder.layers[0]
    monkeypatch.setattr(layer.self_attn.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(UnsupportedError, match="its backend 'flash_attention_2' cannot take"):
        prune(model, ToMe(5))
    monkeypatch.undo()
    monkeypatch.setattr(adapter_for(model).__class__, "sites", frozenset({"projector"}))
    with pytest.raises(UnsupportedError, match="what follows its vision tower takes the raster of patches"):
        prune(model, ToMe(5))


@pytest.mark.parametrize("family", sorted(set(tiny_families()) - {"llava"}))
def test_families_that_work_on_the_raster_of_patches_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedError, match=r"acts at the 'tower' site, but .* because"):
        prune(tiny_model(family)[0], ToMe(5))


def test_layers_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tower_llava()
    layers = model.model.vision_tower.encoder.layers
    monkeypatch.setitem(layers._modules, "0", torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="Linear of LlavaForConditionalGeneration has no layer_norm1"):
        prune(model, ToMe(5))


def test_pipelines_are_checked_when_they_are_built() -> None:
    with pytest.raises(ValueError, match=r"tome\(keep=5\) needs the complete raster"):
        Random(0.5) >> ToMe(5)
    with pytest.raises(ValueError, match="needs the complete raster"):
        ToMe(8) >> ToMe(5)
    with pytest.raises(ValueError, match="needs the complete raster"):
        ToMe(8) >> GridPool(4)
    assert (ToMe(8) >> FasterVLM(5) >> FastV(2, layer=1)).place == places.InDecoder(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ToMe(), "give either keep or r"),
        (lambda: ToMe(5, r=3), "give either keep or r"),
        (lambda: ToMe(r=-1), "r must be an int of at least 0"),
        (lambda: ToMe(r=(3, 2.0)), "r must be an int"),
        (lambda: ToMe(r=[]), "r must be an int"),
        (lambda: ToMe(r="3"), "r must be an int"),  # type: ignore[arg-type]
        (lambda: ToMe(r=True), "r must be an int"),
    ],
)
def test_bad_settings(make: Callable[[], ToMe], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_rest_of_a_selection_is_told_without_a_tower() -> None:
    tokens = Tokens(torch.eye(4), tower_size=torch.tensor([[1.0, 0.0, 3.0, 0.0]]))
    selection: Selection = ToMe(2).select(tokens)
    assert selection.indices.tolist() == [0, 2]
    assert selection.sizes is not None
    assert selection.sizes.tolist() == [1.0, 3.0]
    with pytest.raises(RuntimeError, match="kept 2 of 4 tokens, but 3 were asked for"):
        ToMe(3).select(tokens)


def test_without_a_model_the_tokens_themselves_are_merged() -> None:
    tokens = random_tokens(4, 6)
    selection = ToMe(10).select(tokens)
    merges = ToMe(10).schedule(24, patches=24, prefix=0)
    assert selection.kept == 24 - sum(merges) == 10
    assert selection.sizes is not None
    assert selection.features is not None
    assert selection.sizes.sum() == 24
    mass = (selection.features * selection.sizes[:, None]).sum(0)
    torch.testing.assert_close(mass, tokens.visual.sum(0), atol=1e-4, rtol=0)


def test_a_model_that_did_not_merge_is_an_error() -> None:
    model, make_inputs = tower_llava()
    inputs, adapter = make_inputs(["<0> a"]), adapter_for(model)
    with torch.no_grad():
        prompt = build_prompt(adapter, inputs, adapter.encode(inputs))
    with pytest.raises(RuntimeError, match=r"tome\(keep=5\) .* but the vision tower did not merge"):
        select_tokens(ToMe(5), prompt)
