"""A method with a signal of its own is one file: a model supplies it, and no other file knows of it."""

import pytest
import torch

from tokenprune import (
    FromDecoder,
    FromTower,
    GreedyRepMax,
    InDecoder,
    Keep,
    Layer,
    MIAlignment,
    Scoring,
    Signal,
    Tokens,
    parse,
    prune,
    strategy,
)
from tokenprune.baselines import FasterVLM, FastV, GridPool
from tokenprune.core.signals import Attended
from tokenprune.models import UnsupportedError
from tokenprune.testing import check_strategy, random_tokens, tiny_llava, tiny_model


def entropy(seen: Attended) -> torch.Tensor:
    return torch.special.entr(seen.rows(seen.text)).mean((0, 1))  # of (heads, t, n) over heads and text


ENTROPY = Signal("attention_entropy", "n", FromDecoder(entropy))
LOUDEST = Signal("loudest_head", "n", FromTower(1, lambda seen: seen.rows(seen.last)[:, 0].amax(0), cls=True))


@strategy("most_certain", register=False)
class MostCertain(Scoring):
    """Keep the tokens about whose attention the text agrees."""

    keep: Keep
    layer: Layer = 2
    needs = (ENTROPY,)

    @property
    def place(self) -> InDecoder:
        return InDecoder(self.layer)

    def score(self, tokens: Tokens) -> torch.Tensor:
        return -tokens[ENTROPY]


@strategy("loud", register=False)
class Loud(Scoring):
    """Keep the tokens that some head of the tower's layer 1 attends to."""

    keep: Keep
    needs = (LOUDEST,)

    def score(self, tokens: Tokens) -> torch.Tensor:
        score: torch.Tensor = tokens[LOUDEST]
        return score


@strategy("far_from_mean", register=False)
class FarFromMean(Scoring):
    """Keep the tokens farthest from the mean of all tokens."""

    keep: Keep

    def score(self, tokens: Tokens) -> torch.Tensor:
        visual = tokens.visual.float()
        return (visual - visual.mean(0)).norm(dim=1)


@pytest.mark.parametrize("own", [MostCertain(0.5), Loud(0.5), FarFromMean(0.5)], ids=repr)
def test_own_methods_keep_the_contract(own: Scoring) -> None:
    check_strategy(own)


def test_a_signal_of_the_decoder_is_what_the_eager_model_says() -> None:
    model, make_inputs = tiny_llava(layers=4)
    eager, _ = tiny_llava(layers=4, attn_implementation="eager")
    inputs = make_inputs(["look at <0> now please"])
    with prune(model, MostCertain(5)) as record:
        model.generate(**inputs, max_new_tokens=2)
    with torch.no_grad():
        attention = eager(**inputs, output_attentions=True).attentions[1][0]  # layer 1 decides for layer 2
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    text = torch.arange(int(image[-1]) + 1, inputs["input_ids"].shape[1])
    spread = torch.special.entr(attention[:, text][:, :, image]).mean((0, 1))
    expected = sorted(spread.argsort(stable=True)[:5].tolist())
    assert record.images[0].indices.tolist() == expected
    assert record.images[0].layer == 2


def test_a_signal_of_the_tower_is_what_the_eager_model_says() -> None:
    model, make_inputs = tiny_llava()
    eager, _ = tiny_llava(attn_implementation="eager")
    inputs = make_inputs(["<0> a", "what is in <3>"])
    with prune(model, Loud(6)) as record:
        model.generate(**inputs, max_new_tokens=2)
    with torch.no_grad():
        tower = eager.model.vision_tower(inputs["pixel_values"], output_attentions=True)
    for i, image in enumerate(record.images):
        scores = tower.attentions[1][i, :, 0, 1:].amax(0)
        assert image.indices.tolist() == sorted(scores.argsort(descending=True, stable=True)[:6].tolist())


def test_what_a_model_cannot_supply_is_refused_before_the_context_opens() -> None:
    model, _ = tiny_model("qwen2_vl")
    with pytest.raises(UnsupportedError, match=r"loud\(keep=6\) needs Tokens\.loudest_head, which Qwen2VL"):
        prune(model, Loud(6))


def test_any_stage_acts_at_a_decoder_layer() -> None:
    model, make_inputs = tiny_llava(layers=4)
    inputs = make_inputs(["look at <0> now", "and <1> too"])
    inside = GreedyRepMax(5).at(layer=3)
    assert parse(repr(inside)) == inside
    check_strategy(inside)
    with prune(model, MIAlignment(9) >> inside) as record, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2)
    with prune(model, MIAlignment(9) >> GreedyRepMax(5)) as outside:
        model.generate(**inputs, max_new_tokens=2)
    for one, other in zip(record.images, outside.images, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        assert one.layer_tokens == (9, 9, 9, 5)
    assert FastV(7, layer=2).at(layer=3) == FastV(7, layer=3)


def test_what_cannot_act_in_the_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fastervlm\(keep=3\) reads cls_attention in the vision tower"):
        FasterVLM(3).at(layer=2)
    with pytest.raises(ValueError, match="makes new tokens"):
        GridPool(4).at(layer=2)
    with pytest.raises(ValueError, match="layer must be an int of at least 1"):
        GreedyRepMax(3).at(layer=0)


def test_two_signals_of_one_name_are_two() -> None:
    twin = Signal("loudest_head", "n", FromTower(1, lambda seen: seen.rows(seen.last)[:, 0].amin(0), cls=True))
    tokens = random_tokens(2, 3, signals=[LOUDEST])
    assert twin != LOUDEST
    assert tokens.knows(LOUDEST)
    assert not tokens.knows(twin)
    assert LOUDEST.at(0) == LOUDEST.at(0) != LOUDEST.at(1)
