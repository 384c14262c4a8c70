"""MustDrop's stages inside the decoder, against the hand-made language model."""

from functools import lru_cache
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Rule, Stage, View, check_decoder
from tests.models.oracle import BATCHES as ALL
from tests.models.test_decoder_generate import LAYERS, tiny
from tests.parity import references
from tokenprune import prune
from tokenprune.baselines import MustDrop, MustDropStage
from tokenprune.core.places import Positions, order_of
from tokenprune.models.reading.vision import image_keys

# Each value once; the full product is run by `make test-matrix`.
MATRIX = [
    pytest.param("sdpa", "dynamic"),
    pytest.param("eager", "static"),
    pytest.param("sdpa", "static", marks=pytest.mark.matrix),
    pytest.param("eager", "dynamic", marks=pytest.mark.matrix),
]
BATCHES = {**ALL, "two images": ["compare <0> with <4> please", "here is <1> now", "no image at all"]}


@lru_cache
def tower_attention() -> dict[int, list[float]]:
    """Head mean of the CLS row in the tower's last layer, by image key, from a model that is eager throughout."""
    model, make_inputs = tiny("eager")
    pixels = make_inputs([" ".join(f"<{i}>" for i in range(8))])["pixel_values"]
    with torch.no_grad():
        attention = model.model.vision_tower(pixels, output_attentions=True).attentions[-1]
    rows = attention[:, :, 0, 1:].double().mean(1)
    return dict(zip(image_keys(pixels), rows.tolist(), strict=True))


def mustdrop_rule(global_thr: float, individual_thr: float, key_share: float) -> Rule:
    """Through the naive reference, and the key set by hand."""

    def rule(view: View) -> list[Tensor]:
        kept = []
        pairs = zip(view.images, view.text, view.original, view.keys_of_images, strict=True)
        for image, text, original, key in pairs:
            rows = view.attention[:, text][:, :, image].numpy()
            stay = set(references.mustdrop_filter(rows, global_thr=global_thr, individual_thr=individual_thr).tolist())
            tower = tower_attention()[key]
            best = sorted(range(16), key=lambda i, tower=tower: (-tower[i], i))[: ceil(key_share * 16)]  # type: ignore[misc]
            stay |= {place for place, index in enumerate(original.tolist()) if index in best}
            kept.append(torch.tensor(sorted(stay)))
        return kept

    return rule


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", [None, "original"])
def test_every_step_equals_the_reference(positions: Positions | None, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    numbers: dict[str, Any] = {"global_thr": 0.06, "individual_thr": 0.08, "key_share": 0.1}
    stages = [Stage(layer, positions or "compact", mustdrop_rule(**numbers)) for layer in (1, 2, 3)]
    strategy = MustDrop(**numbers, layers=(1, 2, 3))
    record = check_decoder(
        model, make_inputs(BATCHES[batch]), strategy, stages, positions=positions, cache_implementation=cache
    )
    for image in record.images:
        assert image.layer_tokens[0] == 16 > image.layer_tokens[1] >= image.layer_tokens[3] == image.tokens_kept
        assert image.requested is None
    kept = {image.tokens_kept for image in record.images}
    assert len(kept) > 1 or len(record.images) == 2, "the batch must keep different numbers"


@pytest.mark.parametrize("thresholds", [(1.0, 1.0), (0.0, 0.0)], ids=str)
def test_the_key_set_stays_whatever_the_text_looks_at(thresholds: tuple[float, float]) -> None:
    model, make_inputs = tiny()
    inputs: dict[str, Any] = make_inputs(BATCHES["padded"])
    strategy = MustDrop(*thresholds, layers=(1, 2), key_share=0.2)
    with prune(model, strategy) as record:
        model.generate(**inputs, max_new_tokens=2)
    for key, image in zip(image_keys(inputs["pixel_values"]), record.images, strict=True):
        tower = tower_attention()[key]
        best = sorted(sorted(range(16), key=lambda i, tower=tower: (-tower[i], i))[:4])  # type: ignore[misc]
        if thresholds == (0.0, 0.0):
            assert image.tokens_kept == 16
        else:  # only what has all the attention of some text token would be kept beside it
            assert image.indices.tolist() == best


def test_layers_and_numbers() -> None:
    assert MustDrop.published(128) == MustDrop(0.0012, 0.001)
    assert [order_of(stage.place)[1] for stage in MustDrop(0.1, 0.1).stages] == [3, 7, 11, 15]
    assert MustDrop(0.1, 0.1).at_depth(32) == MustDrop(0.1, 0.1, layers=(3, 7, 11, 15))
    assert MustDrop(0.1, 0.1, layers=(1, 2)).at_depth(LAYERS) == MustDrop(0.1, 0.1, layers=(1, 2))
    with pytest.raises(ValueError, match="budget must be one of"):
        MustDrop.published(100)
    for bad in (-0.1, 1.5, float("nan"), True, "0.1"):
        with pytest.raises((TypeError, ValueError), match="MustDrop: global_thr must be"):
            MustDrop(bad, 0.1)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match="MustDropStage: key_share must be"):
            MustDropStage(0.1, 0.1, key_share=bad)  # type: ignore[arg-type]
    for layers in ((3, 2), (2, 2), (), 5, "8", (0, 1)):
        with pytest.raises((TypeError, ValueError), match="MustDrop"):
            MustDrop(0.1, 0.1, layers=layers)  # type: ignore[arg-type]
