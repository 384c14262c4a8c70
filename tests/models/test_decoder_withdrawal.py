"""VTW: all visual tokens leave at one layer, against the hand-made language model; and the search for that layer."""

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Stage, View, check_decoder, expected_rows, most_attended
from tests.models.oracle import BATCHES, ByContent
from tests.models.test_decoder_generate import LAYERS, tiny
from tokenprune import GreedyRepMax, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import VTW, FastV, GridPool
from tokenprune.core.places import Positions
from tokenprune.core.signals import DECODER_ATTENTION, IMAGE_KEY
from tokenprune.evaluate.withdrawal import find_withdrawal_layer, withdrawal_divergences
from tokenprune.models import UnsupportedError

# Each value once; the full product is run by `make test-matrix`.
MATRIX = [
    pytest.param("sdpa", "dynamic"),
    pytest.param("eager", "static"),
    pytest.param("sdpa", "static", marks=pytest.mark.matrix),
    pytest.param("eager", "dynamic", marks=pytest.mark.matrix),
]


def nothing(view: View) -> list[Tensor]:
    return [torch.arange(0) for _ in view.images]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", [None, "compact"])
def test_every_step_equals_the_reference(positions: Positions | None, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    stages = [Stage(2, positions or "original", nothing)]
    record = check_decoder(
        model, make_inputs(BATCHES[batch]), VTW(layer=2), stages, positions=positions, cache_implementation=cache
    )
    for image in record.images:
        assert (image.tokens_kept, image.requested, image.positions) == (0, 0, positions or "original")
        assert image.layer_tokens == (16, 16, 0, 0)
        assert image.layer_average == 8


@pytest.mark.parametrize("batch", ["padded", "two images"])
def test_it_may_follow_other_stages(batch: str) -> None:
    model, make_inputs = tiny()
    stages = [Stage(1, "original", most_attended(lambda key, left: 3 + key % 5)), Stage(3, "original", nothing)]

    @method("few", register=False)
    class Few(FastV):
        needs = (DECODER_ATTENTION, IMAGE_KEY)  # type: ignore[assignment]

        def requested(self, tokens: Tokens) -> int | None:
            return 3 + (tokens.key or 0) % 5

    strategy = ByContent() >> Few(1, layer=1) >> VTW(layer=3)
    check_decoder(
        model,
        make_inputs(BATCHES[batch]),
        strategy,
        stages,
        positions=None,
        before=ByContent(),
        policy="compact",
    )
    with prune(model, GridPool(4) >> VTW(layer=2)) as record:
        model.generate(**make_inputs(BATCHES[batch]), max_new_tokens=2)
    assert [image.layer_tokens for image in record.images] == [(4, 4, 0, 0)] * len(record.images)


def test_beams_of_a_batch_equal_single_rows() -> None:
    model, make_inputs = tiny()
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with prune(model, VTW(layer=2)):
        many = model.generate(**make_inputs(BATCHES["padded"]), **settings)
    for row, prompt in enumerate(BATCHES["padded"]):
        with prune(model, VTW(layer=2)):
            single = model.generate(**make_inputs([prompt]), **settings)
        assert torch.equal(many[row, -4:], single[0, -4:])


def test_the_search_takes_the_first_layer_that_changes_little() -> None:
    """Divergences from the reference's logits, by hand."""
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    whole = expected_rows(model, inputs, [], steps=1)
    by_hand = {}
    for layer in range(1, LAYERS):
        left = expected_rows(model, inputs, [Stage(layer, "original", nothing)], steps=1)
        terms = []
        for full, withdrawn in zip(whole, left, strict=True):
            p, q = full.logits[0].double().softmax(-1), withdrawn.logits[0].double().softmax(-1)
            terms.append(sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)))
        by_hand[layer] = sum(terms) / len(terms)
    found = withdrawal_divergences(model, [inputs], first=1)
    assert found.keys() == by_hand.keys()
    assert all(abs(found[layer] - by_hand[layer]) < 1e-5 for layer in found)
    for layer, eta in by_hand.items():
        expected = min(k for k, value in by_hand.items() if value <= eta)
        assert find_withdrawal_layer(model, [inputs], eta=eta + 1e-4, first=1) == expected, layer
    with pytest.raises(ValueError, match="no layer reaches eta=0"):
        find_withdrawal_layer(model, [inputs], eta=0.0, first=1)
    with pytest.raises(ValueError, match="nothing to try"):
        find_withdrawal_layer(model, [inputs], eta=1.0)  # the authors begin at layer 5


def test_the_default_layer_depends_on_the_depth() -> None:
    assert [VTW().at_depth(depth).layer for depth in (40, 32, 16, 4, 2)] == [15, 15, 8, 2, 1]
    assert VTW(layer=15).at_depth(4) == VTW(layer=15)
    model, make_inputs = tiny()
    with prune(model, GreedyRepMax(8) >> VTW()) as record:
        model.generate(**make_inputs(BATCHES["one row"]), max_new_tokens=2)
    assert repr(record.strategy) == "greedy_repmax(keep=8) >> vtw(layer=2)"
    assert record.images[0].layer == 2
    with pytest.raises(UnsupportedError, match="layers 0 to 3"):
        prune(model, VTW(layer=15))


def test_nothing_can_follow_a_withdrawal() -> None:
    with pytest.raises(ValueError, match="put it last"):
        VTW(layer=2) >> FastV(3, layer=3)
    with pytest.raises(ValueError, match="VTW: layer must be an int"):
        VTW(layer=0)


def test_a_row_without_text_is_refused() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["<0>"])
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, 1:], "attention_mask": inputs["attention_mask"][:, 1:]}
    with prune(model, VTW(layer=2)), pytest.raises(UnsupportedError, match="would be empty"):
        model.generate(**inputs, max_new_tokens=2)


def test_only_strategies_that_say_so_may_keep_nothing() -> None:
    @method("silent", register=False)
    class Silent(VTW):
        yields = "subset"  # type: ignore[assignment]

    with pytest.raises(RuntimeError, match="kept 0 of 4"):
        Silent().select(Tokens(torch.zeros(4, 2)))
    strategy: PruningStrategy = VTW()
    assert strategy.select(Tokens(torch.zeros(4, 2))).kept == 0
