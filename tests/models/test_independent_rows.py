"""What a row gets depends on nothing but the row: not on the batch, the side of its padding, or the order of rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.family_oracle import tiny
from tests.models.family_strategies import FAMILIES, SETTINGS, InPlace, KeepAllInside, SomeWholeInside, strategies_of
from tests.models.oracle import KeepAll
from tokenprune import PruningStrategy, prune
from tokenprune.core.places import Positions

PROMPTS = [
    "see <2> now",
    "see <0> now",
    "compare <1> with <6> and <3> in the end please",
    "only words here",
    "<4> <5> side by side , what is it",
    "ends in <1> <7>",
    "<3>",
]
BOTH: tuple[Positions, ...] = ("original", "compact")
Row = tuple[Tensor, list[list[int]]]
"""Logits of every step, and of each image the tokens that are kept."""


def generated(
    family: str, prompts: list[str], strategy: PruningStrategy, policy: Positions | None, side: str
) -> list[Row]:
    """What `generate` says of every row."""
    model, make_inputs = tiny(family)
    with prune(model, strategy, positions=policy) as record:
        output = model.generate(**make_inputs(prompts, padding_side=side), **SETTINGS)
    logits = torch.stack(output.logits, dim=1)
    return [(logits[row], _kept(record, row)) for row in range(len(prompts))]


def forwarded(
    family: str, prompts: list[str], strategy: PruningStrategy, policy: Positions | None, side: str
) -> list[Row]:
    """What a plain forward says behind the last token of every row."""
    model, make_inputs = tiny(family)
    inputs = make_inputs(prompts, padding_side=side)
    with prune(model, strategy, positions=policy) as record, torch.no_grad():
        logits = model(**inputs).logits
    columns = record.calls[0].columns
    if columns is None:  # words only
        columns = inputs["attention_mask"] - 1
    last = torch.where(columns != -1, torch.arange(columns.shape[1]), 0).amax(1)
    return [(logits[row, last[row]][None], _kept(record, row)) for row in range(len(prompts))]


def _kept(record: Any, row: int) -> list[list[int]]:
    return [image.indices.tolist() for image in record.images if image.prompt == row]


def check(found: Row, alone: Row, what: str) -> None:
    assert found[1] == alone[1], f"{what}: other tokens"
    worst = float((found[0] - alone[0]).abs().max())
    assert worst <= 2e-5, f"{what}: off by {worst}"


@pytest.mark.parametrize("call", [generated, forwarded])
@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_and_in_a_batch(family: str, policy: Positions, call: Any) -> None:
    for strategy in strategies_of(family):
        # Some stages choose by what the text after an image attends to.
        prompts = PROMPTS[:5] if "sparsevlm" in repr(strategy) else PROMPTS
        alone = [call(family, [prompt], strategy, policy, "left")[0] for prompt in prompts]
        batches = [("left", prompts), ("right", prompts), ("left", prompts[::-1]), ("right", prompts[:2])]
        for side, batch in batches:
            for prompt, row in zip(batch, call(family, batch, strategy, policy, side), strict=True):
                check(row, alone[prompts.index(prompt)], f"{strategy!r}, {prompt!r}, padded on the {side}")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.id != "gemma3"])
def test_gaps_are_closed_after_a_layer_in_every_row(family: str) -> None:
    """Also in rows that lose nothing there but lost something before, whatever their neighbours lose."""
    strategy = InPlace() >> SomeWholeInside(seed=5)
    alone = [generated(family, [prompt], strategy, None, "left")[0] for prompt in PROMPTS]
    for row, one in zip(generated(family, PROMPTS, strategy, None, "left"), alone, strict=True):
        check(row, one, repr(strategy))


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_kept_is_the_plain_model_bit_for_bit(family: str, policy: Positions) -> None:
    model, make_inputs = tiny(family)
    inside = [] if family == "gemma3" else [KeepAllInside()]
    for prompts in (PROMPTS, PROMPTS[-1:], PROMPTS[2:3]):
        inputs = make_inputs(prompts)
        plain = model.generate(**inputs, **SETTINGS)
        for strategy in (KeepAll(), *inside):
            with prune(model, strategy, positions=policy) as record:
                same = model.generate(**inputs, **SETTINGS)
            assert record.kept_share == 1.0
            assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True)), repr(strategy)


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_is_kept_whole_beside_others_is_that_of_the_plain_model(family: str, policy: Positions) -> None:
    model, make_inputs = tiny(family)
    plain = [model.generate(**make_inputs([prompt]), **SETTINGS) for prompt in PROMPTS]
    for strategy in strategies_of(family):
        if "sparsevlm" in repr(strategy) or "ascending" not in strategy.promises or strategy.yields == "merged":
            continue
        rows = generated(family, PROMPTS, strategy, policy, "right")
        sizes = sizes_of(family)
        whole = [i for i, (_, kept) in enumerate(rows) if [len(image) for image in kept] == sizes[i]]
        assert {3} <= set(whole) < set(range(len(PROMPTS)))
        if "some_whole" in repr(strategy):
            assert len(whole) > 1, "no row with an image is whole"
        for i in whole:
            worst = float((rows[i][0] - torch.stack(plain[i].logits, dim=1)[0]).abs().max())
            assert worst <= 2e-5, f"{strategy!r}, {PROMPTS[i]!r}: off by {worst}"


def sizes_of(family: str) -> list[list[int]]:
    """Of each row of `PROMPTS` the numbers of tokens of its images."""
    model, make_inputs = tiny(family)
    with prune(model, KeepAll()) as record, torch.no_grad():
        model(**make_inputs(PROMPTS))
    return [[image.tokens_in for image in record.images if image.prompt == row] for row in range(len(PROMPTS))]
