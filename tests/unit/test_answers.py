"""What a strategy answers is checked: each wrong field is an error that names the strategy and the field."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch

from tokenprune import PruningStrategy, Selection, Tokens
from tokenprune.testing import random_tokens
from tokenprune.tokens import StageCount

RIGHT = Selection(indices=torch.tensor([1, 4, 7]), total=48)
TOKENS = random_tokens()


@dataclass(frozen=True, repr=False)
class Fixed(PruningStrategy):
    """Gives whatever it was told to give."""

    name: ClassVar[str] = "fixed"
    answer: Any = field(default=RIGHT, hash=False)
    merges: bool = False
    extends: bool = False
    ascending: bool = True

    def requested(self, tokens: Tokens) -> None:
        return None

    def _select(self, tokens: Tokens) -> Selection:
        return self.answer(tokens) if callable(self.answer) else self.answer


@dataclass(frozen=True, repr=False)
class FixedBatch(Fixed):
    name: ClassVar[str] = "fixed_batch"

    def _select_batch(self, batch: Any) -> Any:
        return self.answer


def changed(**fields: Any) -> Selection:
    return replace(RIGHT, **fields)


INDICES = RIGHT.indices
VECTORS = torch.zeros(3, 16)

BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"answer": None}, ["Selection", "NoneType"]),
    ({"answer": INDICES}, ["Selection", "Tensor"]),
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
    ({"answer": changed(gains=torch.zeros(2))}, ["gains", "(3,)", "(2,)"]),
    ({"answer": changed(sizes=torch.zeros(48))}, ["sizes", "(3,)", "(48,)"]),
    ({"answer": changed(stages=[StageCount(stage="a", tokens_in=3, tokens_out=3)])}, ["stages", "tuple"]),
    ({"answer": changed(features=VECTORS)}, ["`merges` is False"]),
    ({"answer": RIGHT, "merges": True}, ["`merges` is True"]),
    ({"answer": changed(features=VECTORS[:2]), "merges": True}, ["features", "(3, 16)", "(2, 16)"]),
    ({"answer": changed(features=VECTORS[..., None]), "merges": True}, ["features", "(3, 16, 1)"]),
    ({"answer": changed(features=VECTORS.double()), "merges": True}, ["features", "float32", "float64"]),
    ({"answer": changed(features=VECTORS.to("meta")), "merges": True}, ["features", "meta", "cpu"]),
    ({"answer": changed(features=VECTORS.to_sparse()), "merges": True}, ["features", "sparse"]),
    ({"answer": changed(features=VECTORS.tolist()), "merges": True}, ["features", "list"]),
    ({"answer": changed(features=torch.zeros(3, 16, requires_grad=True)), "merges": True}, ["features", "gradient"]),
    ({"answer": changed(features=VECTORS / 0), "merges": True}, ["NaN or infinity"]),
    ({"answer": changed(extra=VECTORS[:, :5]), "extends": True}, ["extra", "(3, 16)", "(3, 5)"]),
    ({"answer": changed(extra=torch.tensor(1.0)), "extends": True}, ["extra", "()"]),
    ({"answer": changed(extra=VECTORS + torch.inf), "extends": True}, ["NaN or infinity"]),
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
    pipeline = Fixed(answer, merges=True) >> Fixed(Selection(indices=torch.tensor([0, 2]), total=3))
    selection = pipeline.select(TOKENS)
    assert selection.indices.tolist() == [1, 7]
    assert selection.features is not None
    assert torch.equal(selection.features, vectors[[0, 2]])


def test_vectors_of_the_tokens_themselves_may_carry_their_gradient() -> None:
    learned = replace(TOKENS, visual=TOKENS.visual.clone().requires_grad_())
    every = Fixed(lambda t: Selection(indices=torch.arange(48), total=48, features=t.visual), merges=True)
    assert every.select(learned).kept == 48
