"""Methods inside the decoder keep the same tokens with and without padding, in `generate` and in a plain forward."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.family_oracle import LAYERS, tiny
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import DART, VTW, FastV, FitPrune, MustDrop, PyramidDrop, Random, SparseVLM
from tokenprune.models.decoder.readings import keys_from_first
from tokenprune.testing import tiny_families

ROWS = ["look at <0> now", "<1> what is it", "tell me more about the <4> things in <2> and <0> please"]

METHODS: dict[str, PruningStrategy] = {
    "dart": DART(9),
    "dart, text pivots alone steer": DART(7, pivot_image=1, layer=3),
    "dart after a cut that renumbers": SparseVLM(0.75, layers=(2,)) >> DART(6, layer=3),
    "dart after a cut that keeps positions": FastV(11, layer=2) >> DART(6, layer=3),
    "dart after random tokens before the model": Random(9) >> DART(5),
    "fastv": FastV(5),
    "fitprune": FitPrune((0.0, 0.3, 0.2, 0.3)),
    "mustdrop": MustDrop(0.06, 0.2, layers=(2, 3)),
    "pyramiddrop": PyramidDrop(0.25, layers=(2, 3)),
    "sparsevlm": SparseVLM(0.25, layers=(2, 3)),
    "vtw": VTW(layer=2),
}


def cases() -> Iterator[Any]:
    for family in tiny_families():
        for name in METHODS:
            if family == "gemma3" or ("mustdrop" in name and family != "llava"):
                continue  # refused there
            marks = () if family == "llava" else pytest.mark.matrix
            yield pytest.param(family, name, id=f"{family}-{name}", marks=marks)


def kept(model: Any, inputs: dict[str, Tensor], strategy: PruningStrategy, *, generate: bool) -> list[list[int]]:
    """Original indices that are left of each image."""
    with torch.no_grad(), prune(model, strategy) as record:
        if generate:
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        else:
            model(**inputs)
    return [image.indices.tolist() for image in record.images]


@pytest.mark.parametrize(("family", "name"), list(cases()))
def test_padding_and_the_way_of_calling_do_not_change_what_is_kept(family: str, name: str) -> None:
    model, make_inputs = tiny(family)
    strategy = METHODS[name]
    alone = [indices for row in ROWS for indices in kept(model, make_inputs([row]), strategy, generate=True)]
    assert len(alone) == 5
    for generate in (True, False):
        for side in ("left", "right"):
            together = kept(model, make_inputs(ROWS, padding_side=side), strategy, generate=generate)
            assert together == alone, f"generate={generate}, padding on the {side}"
        assert [i for row in ROWS for i in kept(model, make_inputs([row]), strategy, generate=generate)] == alone


def test_dart_does_not_depend_on_where_the_caller_lets_positions_begin() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(ROWS[:1])
    plain = kept(model, inputs, DART(7), generate=False)
    places = torch.arange(inputs["input_ids"].shape[1])[None]
    for start in (1, 5, 40, 300):
        assert kept(model, {**inputs, "position_ids": places + start}, DART(7), generate=False) == plain


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("rotated", [8, 6])
@pytest.mark.parametrize("axes", [0, 3])
def test_keys_are_turned_back_to_positions_that_begin_at_zero(axes: int, rotated: int, scale: float) -> None:
    """Against keys rotated by hand, pair by pair, at the positions that the tokens have without padding."""
    attention: Any = sample_attention()
    raw = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12], [9, 9, 3, 4, 5, 6]])
    mask = torch.tensor([[1] * 6, [1] * 6, [0, 0, 1, 1, 1, 1]]).bool()
    begins = torch.tensor([0, 7, 3])
    frequencies = 100.0 ** (-torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)

    def rotate(places: Tensor) -> Tensor:
        out = raw.clone()
        for pair in range(rotated // 2):
            angle = (places * frequencies[pair])[:, None]
            a, b = raw[..., pair], raw[..., pair + rotated // 2]
            out[..., pair] = scale * (a * angle.cos() - b * angle.sin())
            out[..., pair + rotated // 2] = scale * (b * angle.cos() + a * angle.sin())
        return out

    angles = torch.cat([positions[..., None] * frequencies] * 2, dim=-1)
    rotary = tuple(scale * part.expand(*((axes,) if axes else ()), -1, -1, -1) for part in (angles.cos(), angles.sin()))
    turned = keys_from_first(attention, rotate(positions), rotary, mask)  # type: ignore[arg-type]
    expected = rotate(positions - begins[:, None])
    seen = mask[:, None, :, None].expand_as(expected)
    torch.testing.assert_close(turned[seen], expected[seen], rtol=1e-5, atol=1e-5)
    assert torch.equal(turned[0], rotate(positions)[0]), "a row that begins at 0 keeps its bits"


def sample_attention() -> Any:
    model, _ = tiny("llava")
    return model.model.language_model.layers[LAYERS - 1].self_attn
