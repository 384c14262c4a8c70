"""What a strategy answers is checked: each wrong field is an error that names the strategy and the field."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenprune import PLAIN, Choice, Selection, Stage, Tokens
from tokenprune.core.checks import Yields
from tokenprune.core.selection import StageCount
from tokenprune.testing import random_tokens

RIGHT = Selection(indices=torch.tensor([1, 4, 7]), total=48)
TOKENS = random_tokens()


class Fixed(Stage):
    """Gives whatever answer it got."""

    name = "fixed"

    def __init__(self, answer: Any = RIGHT, yields: Yields = "subset", ascending: bool = True) -> None:
        self.answer, self._yields, self.ascending = answer, yields, ascending

    @property
    def yields(self) -> Yields:
        return self._yields

    @property
    def promises(self) -> Any:
        return PLAIN if self.ascending else PLAIN - {"ascending"}

    def choose(self, tokens: Tokens) -> Choice:
        answer: Choice = self.answer(tokens) if callable(self.answer) else self.answer
        return answer


class FixedBatch(Fixed):
    def choose_batch(self, batch: Any) -> Any:
        return self.answer


def changed(**fields: Any) -> Selection:
    return replace(RIGHT, **fields)


INDICES = RIGHT.indices
VECTORS = torch.zeros(3, 16)
LEARNED = torch.zeros(3, 16, requires_grad=True)

BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"answer": None}, ["Choice", "NoneType"]),
    ({"answer": INDICES}, ["Choice", "Tensor"]),
    ({"answer": changed(indices=[1, 4, 7])}, ["indices", "torch.Tensor", "list"]),
    ({"answer": changed(indices=INDICES[None])}, ["indices", "(1, 3)"]),
    ({"answer": changed(indices=INDICES.int())}, ["indices", "int32"]),
    ({"answer": changed(indices=INDICES.to("meta"))}, ["indices", "meta", "cpu"]),
    ({"answer": changed(indices=INDICES.to_sparse())}, ["indices", "sparse", "to_dense"]),
    ({"answer": changed(indices=INDICES[:0])}, ["kept 0 of 48"]),
    ({"answer": changed(indices=torch.tensor([1, 4, 48]))}, ["indices", "[1, 4, 48]", "[0, 48)"]),
    ({"answer": changed(indices=INDICES.flip(0))}, ["indices", "ascending", "[7, 4, 1]"]),
    ({"answer": changed(indices=torch.tensor([4, 4, 1])), "ascending": False}, ["indices", "unique", "[4, 4, 1]"]),
    ({"answer": changed(order=torch.tensor([1, 4, 5]))}, ["order", "[1, 4, 5]", "[1, 4, 7]"]),
    ({"answer": changed(order=torch.tensor([1, 4, 4]))}, ["order", "[1, 4, 4]"]),
    ({"answer": changed(order=torch.tensor([1, 4]))}, ["order", "(3,)", "(2,)"]),
    ({"answer": changed(order=INDICES.float())}, ["order", "int64", "float32"]),
    ({"answer": changed(order=INDICES.to("meta"))}, ["order", "meta", "cpu"]),
    ({"answer": changed(order=[1, 4, 7])}, ["order", "list"]),
    ({"answer": changed(scores=torch.zeros(3))}, ["scores", "(48,)", "(3,)"]),
    ({"answer": changed(scores=torch.zeros(48, 1))}, ["scores", "(48,)", "(48, 1)"]),
    ({"answer": changed(scores=torch.zeros(48, dtype=torch.int64))}, ["scores", "floating", "int64"]),
    ({"answer": changed(scores=torch.zeros(48, device="meta"))}, ["scores", "meta"]),
    ({"answer": changed(sizes=torch.zeros(48))}, ["sizes", "(3,)", "(48,)"]),
    ({"answer": changed(stages=[StageCount(stage="a", tokens_in=3, tokens_out=3)])}, ["stages", "tuple"]),
    ({"answer": changed(features=VECTORS)}, ["yields 'subset'", "features are given"]),
    ({"answer": RIGHT, "yields": "merged"}, ["yields 'merged'", "features are missing"]),
    ({"answer": changed(features=VECTORS[:2]), "yields": "merged"}, ["features", "(3, 16)", "(2, 16)"]),
    ({"answer": changed(features=VECTORS[..., None]), "yields": "merged"}, ["features", "(3, 16, 1)"]),
    ({"answer": changed(features=VECTORS.double()), "yields": "merged"}, ["features", "float32", "float64"]),
    ({"answer": changed(features=VECTORS.to("meta")), "yields": "merged"}, ["features", "meta", "cpu"]),
    ({"answer": changed(features=VECTORS.to_sparse()), "yields": "merged"}, ["features", "sparse"]),
    ({"answer": changed(features=VECTORS.tolist()), "yields": "merged"}, ["features", "list"]),
    (
        {"answer": changed(features=torch.zeros(3, 16, requires_grad=True)), "yields": "merged"},
        ["features", "gradient"],
    ),
    ({"answer": changed(features=VECTORS / 0), "yields": "merged"}, ["NaN or infinity"]),
    ({"answer": changed(extra=VECTORS[:, :5]), "yields": "extended"}, ["extra", "(3, 16)", "(3, 5)"]),
    ({"answer": changed(extra=torch.tensor(1.0)), "yields": "extended"}, ["extra", "()"]),
    ({"answer": changed(extra=VECTORS + torch.inf), "yields": "extended"}, ["NaN or infinity"]),
]


@pytest.mark.parametrize(("arguments", "words"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_a_wrong_answer_names_strategy_and_field(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RuntimeError, match="^Fixed: ") as caught:
        Fixed(**arguments).select(TOKENS)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("answer", [None, RIGHT, {}, iter([RIGHT]), [RIGHT, RIGHT], [None]])
def test_a_wrong_batch_of_answers_is_named(answer: Any) -> None:
    with pytest.raises(RuntimeError, match="^FixedBatch: "):
        FixedBatch(answer).select(TOKENS)


def spaced(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps between them in memory."""
    return torch.stack([x, x], dim=-1)[..., 0]


@pytest.mark.parametrize("layout", [spaced, lambda x: x.flip(0).flip(0), lambda x: torch.cat([x, x])[: len(x)]])
def test_any_strides_are_right(layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    vectors = torch.arange(48.0).view(3, 16)
    answer = changed(
        indices=layout(INDICES), order=layout(INDICES), features=layout(vectors), scores=layout(torch.ones(48))
    )
    pipeline = Fixed(answer, yields="merged") >> Fixed(Choice(torch.tensor([0, 2])))
    selection = pipeline.select(TOKENS)
    assert selection.indices.tolist() == [1, 7]
    assert selection.features is not None
    assert torch.equal(selection.features, vectors[[0, 2]])


def test_vectors_of_the_tokens_themselves_may_carry_their_gradient() -> None:
    learned = replace(TOKENS, visual=TOKENS.visual.clone().requires_grad_())
    every = Fixed(lambda t: Choice(torch.arange(48), features=t.visual), yields="merged")
    assert every.select(learned).kept == 48
