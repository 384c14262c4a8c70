"""`Tokens` refuses what does not fit together, and `take` keeps track of the original image."""

from dataclasses import replace
from typing import Any

import numpy as np
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
        ({"visual": torch.zeros(4, 3), "text": torch.zeros(2, 3, device="meta")}, ["text", "meta", "cpu"]),
        ({"visual": torch.zeros(4, 3, device="meta")}, ["visual", "meta", "no numbers"]),
        ({"visual": np.zeros((4, 3))}, ["visual", "ndarray", "torch.as_tensor"]),
        ({"visual": torch.zeros(4, 0)}, ["visual", "(4, 0)", "no column"]),
        ({"visual": torch.zeros(4, 3).to_sparse()}, ["visual", "sparse", ".to_dense()"]),
        ({"visual": torch.zeros(4, 3).to(torch.float8_e4m3fn)}, ["visual", "float8", ".float()"]),
        ({"visual": torch.zeros(4, 3, dtype=torch.complex64)}, ["visual", "complex64", ".abs()"]),
        ({"visual": torch.zeros(4, 3), "index": torch.tensor([3, 2, 1, 0])}, ["index", "[3, 2, 1, 0]", "ascending"]),
        ({"visual": torch.zeros(4, 3), "index": torch.tensor([0, 1, 1, 2])}, ["index", "[0, 1, 1, 2]", "once"]),
        ({"visual": torch.zeros(4, 3), "index": torch.tensor([-1, 1, 2, 3])}, ["index", "[-1, 1, 2, 3]"]),
        ({"visual": torch.zeros(4, 3), "index": [0, 1, 2, 3]}, ["index", "torch.Tensor", "list"]),
        ({"visual": torch.zeros(4, 3), "tiles": torch.tensor([0, -2, 0, 0])}, ["tiles", "-2"]),
        ({"visual": torch.zeros(4, 3), "grid": [2, 2]}, ["grid", "[2, 2]", "tuple"]),
        ({"visual": torch.zeros(4, 3), "grid": (2.0, 2.0)}, ["grid", "(2.0, 2.0)", "ints"]),
        ({"visual": torch.zeros(4, 3), "grid": (4,)}, ["grid", "(4,)", "two"]),
        ({"visual": torch.zeros(4, 3), "tile_grid": (0, 2)}, ["tile_grid", "(0, 2)"]),
        ({"visual": torch.zeros(4, 3), "total": 4.0}, ["total", "4.0", "float", "int()"]),
        ({"visual": torch.zeros(4, 3), "total": True}, ["total", "True", "bool"]),
        ({"visual": torch.zeros(4, 3), "total": 10**5000}, ["total", "below 2**53", "bits"]),
        ({"visual": torch.zeros(4, 3), "key": 1.5}, ["key", "1.5", "int()"]),
        ({"visual": torch.zeros(4, 3), "prompt": -1}, ["prompt", "-1"]),
        ({"visual": torch.zeros(4, 3), "tower_size": torch.ones(2, 4)}, ["tower_size", "(1, n)", "1 entry"]),
        ({"visual": torch.zeros(4, 3), "cls_attention": torch.ones(0, 4)}, ["cls_attention", "at least one row"]),
        ({"visual": torch.zeros(4, 3), "clip_text": torch.ones(0, 4)}, ["clip_text", "no rows"]),
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


def test_what_was_taken_in_another_order_can_be_changed_and_taken_from() -> None:
    reordered = random_tokens(4, 5).take(torch.tensor([9, 2, 11]), features=torch.ones(3, 16))
    changed = replace(reordered, text=None, question=None)
    assert changed.positions.tolist() == [9, 2, 11]
    assert changed.take(torch.tensor([2, 0])).positions.tolist() == [11, 9]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([0, 1], ["rows", "torch.Tensor", "list"]),
        (torch.tensor([0, 20]), ["rows", "0 to 19", "[0, 20]"]),
        (torch.tensor([-1, 2]), ["rows", "[-1, 2]"]),
        (torch.tensor([2, 2]), ["rows", "each once"]),
        (torch.ones(20, dtype=torch.bool), ["rows", "bool", ".nonzero().flatten()"]),
        (torch.empty(0, dtype=torch.int64), ["rows", "empty"]),
        (torch.tensor([1], device="meta"), ["rows", "meta", "cpu"]),
    ],
)
def test_take_names_bad_rows(rows: Any, words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"Tokens\.take") as caught:
        random_tokens(4, 5).take(rows)
    for word in words:
        assert word in str(caught.value)


def test_immutable() -> None:
    with pytest.raises(AttributeError):
        random_tokens().total = 3  # type: ignore[misc]
