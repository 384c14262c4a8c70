"""MustDrop's merging in the tower, alone and before its stages in the decoder, against plain loops."""

from math import ceil
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Rule, Stage, View, expected_row
from tests.models.oracle import BATCHES, named, of
from tests.models.tower_oracle import tower_llava
from tests.parity import references
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import MustDrop, MustDropMerge
from tokenprune.models import adapter_for
from tokenprune.models.encode.tower import encode_merged
from tokenprune.models.reading.vision import image_keys
from tokenprune.testing import check_strategy
from tokenprune.testing.reference import reference_logits

THRESHOLDS = {"clip": 0.3, "siglip": 0.0}
"""Low, because the tiny towers' weights are random: some windows are above, some below."""


class Merged(NamedTuple):
    """One image's tokens in raster order, and the head mean of the CLS row in the tower's last layer."""

    features: Tensor
    places: list[int]
    sizes: list[int]
    attention: list[float]


@torch.no_grad()
def merged_image(model: Any, pixels: Tensor, threshold: float, kind: str = "clip") -> Merged:
    """One image through the plain layers, with the windows merged by the reference behind the first."""
    tower = model.model.vision_tower
    x, cls = tower.embeddings(pixels[None]), int(kind == "clip")
    x = tower.pre_layrnorm(x) if cls else x
    used = len(tower.encoder.layers) - cls
    places, sizes, features, attention = [], [], torch.empty(0), [0.0]
    for number, layer in enumerate(tower.encoder.layers):
        if cls and number == len(tower.encoder.layers) - 1:
            attend = layer.self_attn
            y = layer.layer_norm1(x)[0]
            q, k = (part(y).unflatten(-1, (attend.num_heads, -1)) for part in (attend.q_proj, attend.k_proj))
            rows = [(q[0, h] @ k[:, h].T / q.shape[-1] ** 0.5).softmax(0) for h in range(attend.num_heads)]
            attention = torch.stack(rows).double().mean(0)[1:].tolist()
        x = layer(x, attention_mask=None)
        if number == 0:
            # The reference wants a CLS row first; what it is does not matter.
            rows_in = torch.cat([torch.ones_like(x[0, :1]), x[0, cls:]]).numpy()
            out, size, order, untouched, _ = references.mustdrop_merge(rows_in, threshold=threshold, window=2)
            corners = [8 * (window // 2) + 2 * (window % 2) for window in order.tolist()] + untouched.tolist()
            raster = sorted(range(len(corners)), key=lambda i: corners[i])
            places, sizes = [corners[i] for i in raster], [int(size[1 + i]) for i in raster]
            left = torch.tensor(out[1:][raster]).float()
            x = torch.cat([x[0, :cls], left])[None]
        if number == used - 1:
            features = model.model.multi_modal_projector(x[0, cls:])
    return Merged(features, places, sizes, attention)


def whole(merged: Merged) -> Tensor:
    return torch.zeros(16, merged.features.shape[1]).index_copy(0, torch.tensor(merged.places), merged.features)


def generated(model: Any, inputs: dict[str, Tensor], strategy: PruningStrategy) -> tuple[Tensor, Any]:
    with prune(model, strategy) as record:
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(out.logits, dim=1), record


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_merging_alone_equals_the_loop_at_every_step(attention: str, kind: str) -> None:
    model, make_inputs = tower_llava(kind, attention)
    inputs, strategy = make_inputs(BATCHES["padded"]), MustDropMerge(window=2, threshold=THRESHOLDS[kind])
    wanted = [merged_image(model, image, THRESHOLDS[kind], kind) for image in inputs["pixel_values"]]
    assert len({len(merged.places) for merged in wanted}) > 1, "the images must keep different numbers"
    with torch.no_grad():
        vision = encode_merged(
            adapter_for(model), inputs, named("cls_attention_last") if kind == "clip" else named(), strategy
        )
    logits, record = generated(model, inputs, strategy)
    for i, merged in enumerate(wanted):
        torch.testing.assert_close(vision.features.split(16)[i], whole(merged), atol=1e-5, rtol=0)
        if of(vision, "cls_attention_last") is not None:
            found = of(vision, "cls_attention_last")[i].mean(0)[merged.places]
            torch.testing.assert_close(found, torch.tensor(merged.attention), atol=1e-5, rtol=0, check_dtype=False)
        assert record.images[i].indices.tolist() == merged.places
        assert record.images[i].sizes == tuple(merged.sizes)
        row = record.images[i].prompt
        real = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        expected = reference_logits(
            model, real, [whole(merged)], [torch.tensor(merged.places)], positions="compact", steps=4
        )
        assert (logits[row] - expected.logits).abs().max() <= 1e-5


def rule(wanted: dict[int, Merged], global_thr: float, individual_thr: float, key_share: float) -> Rule:
    """The filter's reference, and by hand the key set among the merged tokens."""

    def decide(view: View) -> list[Tensor]:
        kept = []
        pairs = zip(view.images, view.text, view.original, view.keys_of_images, strict=True)
        for image, text, original, key in pairs:
            rows, merged = view.attention[:, text][:, :, image].numpy(), wanted[key]
            stay = set(references.mustdrop_filter(rows, global_thr=global_thr, individual_thr=individual_thr).tolist())
            n = len(merged.places)
            ranked = sorted(range(n), key=lambda i, merged=merged: (-merged.attention[i], i))  # type: ignore[misc]
            best = [merged.places[i] for i in ranked[: ceil(key_share * n)]]
            stay |= {place for place, index in enumerate(original.tolist()) if index in best}
            kept.append(torch.tensor(sorted(stay)))
        return kept

    return decide


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_whole_method_equals_the_loop_at_every_step(attention: str) -> None:
    model, make_inputs = tower_llava("clip", attention)
    inputs = make_inputs(BATCHES["padded"])
    keys = list(image_keys(inputs["pixel_values"]))
    numbers: dict[str, Any] = {"global_thr": 0.12, "individual_thr": 0.08, "key_share": 0.2}
    layers = tuple(range(1, len(model.model.language_model.layers)))
    images = [merged_image(model, image, THRESHOLDS["clip"]) for image in inputs["pixel_values"]]
    strategy = MustDropMerge(window=2, threshold=THRESHOLDS["clip"]) >> MustDrop(**numbers, layers=layers)
    logits, record = generated(model, inputs, strategy)
    stages = [Stage(layer, "compact", rule(dict(zip(keys, images, strict=True)), **numbers)) for layer in layers]
    for i, merged in enumerate(images):
        row = record.images[i].prompt
        real = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        places = [torch.tensor(merged.places)]
        expected = expected_row(model, real, [whole(merged)], places, [keys[i]], stages, policy="compact")
        assert (logits[row] - expected.logits).abs().max() <= 1e-5
        assert record.images[i].indices.tolist() == expected.kept[0].tolist()
        assert len(merged.places) > record.images[i].tokens_kept
        alone, single = generated(model, make_inputs([BATCHES["padded"][row]]), strategy)
        assert (alone[0] - logits[row]).abs().max() <= 1e-5
        assert single.images[0].indices.tolist() == record.images[i].indices.tolist()


def test_the_raster_must_be_divisible_and_the_option_is_the_pipeline() -> None:
    model, make_inputs = tower_llava()
    with pytest.raises(ValueError, match=r"window=3 must divide the raster of patches, which is 4 x 4"):
        generated(model, make_inputs(["<0> a"]), MustDropMerge())
    both = MustDrop(0.1, 0.1, layers=(1,), merge=True, window=2)
    assert both == MustDropMerge(window=2) >> MustDrop(0.1, 0.1, layers=(1,))
    check_strategy(MustDropMerge(window=2, threshold=-0.1))
    check_strategy(both)
    for window in (1, 2.0, True):
        with pytest.raises((TypeError, ValueError), match="window must be"):
            MustDropMerge(window=window)  # type: ignore[arg-type]
    for threshold in (1.5, float("nan"), "0.8"):
        with pytest.raises((TypeError, ValueError), match="threshold must be"):
            MustDropMerge(threshold=threshold)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="merge must be a bool"):
        MustDrop(0.1, 0.1, merge=1)  # type: ignore[arg-type]
