"""`Tokens` refuses what does not fit together, and `take` keeps track of the original image."""

from typing import Any

import pytest
import torch

from tokenprune import Tokens
from tokenprune.testing import random_tokens


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"visual": [[1.0]]}, ["visual", "torch.Tensor", "list"]),
        ({"visual": torch.zeros(2, 3, dtype=torch.int64)}, ["visual", "floating", "int64"]),
        ({"visual": torch.zeros(1, 2, 3)}, ["visual", "two-dimensional", "(1, 2, 3)"]),
        ({"visual": torch.zeros(0, 3)}, ["visual", "no rows"]),
        ({"visual": torch.zeros(4, 3), "text": torch.zeros(2, 5)}, ["text", "(2, 5)", "(4, 3)"]),
        ({"visual": torch.zeros(4, 3), "grid": (2, 3)}, ["grid", "(2, 3)", "4"]),
        ({"visual": torch.zeros(4, 3), "grid": (-2, -2)}, ["grid"]),
        ({"visual": torch.zeros(4, 3), "index": torch.arange(3)}, ["index", "int64 (4,)"]),
        ({"visual": torch.zeros(4, 3), "tiles": torch.zeros(4)}, ["tiles", "int64", "(4,)"]),
        ({"visual": torch.zeros(4, 3), "total": 3}, ["total=3"]),
        ({"visual": torch.zeros(4, 3), "cls_attention": torch.zeros(2, 5)}, ["cls_attention", "(2, 5)", "4"]),
        ({"visual": torch.zeros(4, 3), "vision_states": torch.zeros(5, 5)}, ["vision_states", "(5, 5)"]),
        ({"visual": torch.zeros(4, 3), "question": torch.ones(2, dtype=torch.bool)}, ["question"]),
        (
            {"visual": torch.zeros(4, 3), "text": torch.zeros(3, 3), "question": torch.ones(2, dtype=torch.bool)},
            ["question", "3 entries", "text"],
        ),
        ({"visual": torch.zeros(4, 3), "text": torch.zeros(2, 3, device="meta")}, ["text", "meta"]),
    ],
)
def test_bad_tokens_name_the_field(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Tokens(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_take_follows_original_indices_and_signals() -> None:
    tokens = random_tokens(4, 5)
    once = tokens.take(torch.tensor([1, 4, 7, 19]))
    twice = once.take(torch.tensor([0, 3]))
    assert twice.positions.tolist() == [1, 19]
    assert (twice.n, twice.original, twice.grid) == (2, 20, (4, 5))
    assert torch.equal(twice.visual, tokens.visual[[1, 19]])
    assert tokens.cls_attention is not None
    assert twice.cls_attention is not None
    assert torch.equal(twice.cls_attention, tokens.cls_attention[:, [1, 19]])
    assert twice.text is tokens.text
    assert tokens.tiles is not None
    assert twice.tiles is not None
    assert twice.tiles.tolist() == tokens.tiles[[1, 19]].tolist() == [0, 2]


def test_merged_tokens_lose_the_signals_of_the_tokens_they_replace() -> None:
    tokens = random_tokens(4, 5)
    merged = tokens.take(torch.tensor([3, 9]), features=torch.ones(2, 16))
    assert merged.cls_attention is None
    assert merged.vision_states is None
    assert merged.tiles is None
    assert merged.positions.tolist() == [3, 9]
    assert torch.equal(merged.visual, torch.ones(2, 16))


def test_immutable() -> None:
    with pytest.raises(AttributeError):
        random_tokens().total = 3  # type: ignore[misc]
