"""`@strategy`: fields checked by annotations, options by name, and what a class may not do."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from tokenprune import Choice, Count, Keep, Layer, PruningStrategy, Scoring, Share, Stage, Tokens, strategy
from tokenprune.core.fields import Layers


@strategy("every_kind", register=False)
class EveryKind(Stage):
    keep: Keep | Literal["adaptive"] = "adaptive"
    layer: Layer | None = None
    layers: Layers | None = None
    seed: Count = 0
    share: Share = 0.5
    mode: Literal["a", "b"] = "a"
    start: Literal["first"] | int = "first"
    flag: bool = False
    factor: float = 1.0
    inner: PruningStrategy | None = None
    yields: Any = "subset"

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)))


def test_what_fits_is_taken_and_normalised() -> None:
    made = EveryKind(3, layers=[2, 5], seed=4, share=1, start=7, factor=2, inner=EveryKind())  # type: ignore[arg-type]
    assert made.layers == (2, 5)
    assert repr(made) == "every_kind(keep=3, layers=(2, 5), seed=4, share=1, start=7, factor=2, inner=every_kind())"
    assert EveryKind("adaptive").requested(Tokens(torch.zeros(4, 2))) is None
    assert EveryKind(0.5).requested(Tokens(torch.zeros(4, 2))) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": 0}, ValueError, "EveryKind: keep must be a positive int"),
        ({"keep": "some"}, TypeError, "EveryKind: keep must be a positive int .* got 'some' of type str"),
        ({"keep": True}, TypeError, "EveryKind: keep must be .* got True of type bool"),
        ({"layer": 0}, ValueError, "EveryKind: layer must be an int of at least 1 .* got 0"),
        ({"layer": 2.0}, TypeError, "EveryKind: layer .* got 2.0 of type float"),
        ({"layers": (3, 3)}, ValueError, r"EveryKind: layers must be a tuple of ints .* that ascend, .* got \(3, 3\)"),
        ({"layers": "12"}, TypeError, "EveryKind: layers must be a tuple of ints"),
        ({"seed": -1}, ValueError, "EveryKind: seed must be an int of at least 0, got -1"),
        ({"seed": True}, TypeError, "EveryKind: seed must be an int .* got True"),
        ({"share": 1.1}, ValueError, "EveryKind: share must be a number from 0 to 1, got 1.1"),
        ({"share": float("nan")}, ValueError, "EveryKind: share must be a number from 0 to 1, got nan"),
        ({"mode": "c"}, ValueError, "EveryKind: mode must be one of 'a', 'b', got 'c'"),
        ({"start": "last"}, ValueError, "EveryKind: start must be one of 'first' or an int, got 'last'"),
        ({"start": 1.5}, TypeError, "EveryKind: start must be an int, got 1.5 of type float"),
        ({"flag": 1}, TypeError, "EveryKind: flag must be a bool, got 1 of type int"),
        ({"factor": "2"}, TypeError, "EveryKind: factor must be a float, got '2' of type str"),
        ({"inner": "random"}, TypeError, "EveryKind: inner must be a PruningStrategy, got 'random' of type str"),
    ],
)
def test_what_does_not_fit_names_class_field_and_value(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        EveryKind(**arguments)


def test_only_the_first_field_and_those_without_default_go_by_position() -> None:
    @strategy("two", register=False)
    class Two(Stage):
        low: float
        high: float
        mode: Literal["a", "b"] = "a"

        def choose(self, tokens: Tokens) -> Choice:
            return Choice(torch.arange(tokens.n))

    assert repr(Two(0.1, 0.2)) == "two(low=0.1, high=0.2)"
    with pytest.raises(TypeError, match="positional"):
        Two(0.1, 0.2, "b")
    with pytest.raises(TypeError, match="positional"):
        EveryKind(3, 2)


def test_what_a_class_says_of_itself_is_no_field() -> None:
    assert "yields" not in repr(EveryKind(2))
    with pytest.raises(TypeError, match="yields"):
        EveryKind(2, yields="merged")


def test_instances_are_frozen_and_their_classes_complete() -> None:
    with pytest.raises(AttributeError):
        EveryKind(3).keep = 4  # type: ignore[misc]

    class Nothing(Stage):
        """Decides nothing."""

    class Half(Scoring):
        """Has no score."""

    class Ranks(Stage):
        """Writes what is final."""

        def count(self, tokens: Tokens) -> int:  # type: ignore[misc]
            return 1

        def choose(self, tokens: Tokens) -> Choice:
            return Choice(torch.arange(1))

    refused: list[tuple[Callable[..., Any], str]] = [
        (Nothing, "Nothing: write choose or choose_batch"),
        (Half, "Half: write score"),
        (Ranks, "Ranks: overrides count, which is final"),
    ]
    for cls, message in refused:
        with pytest.raises(TypeError, match=message):
            strategy("incomplete", register=False)(cls)  # type: ignore[arg-type]


def test_a_gradient_reaches_what_a_stage_makes_and_nothing_else() -> None:
    @strategy("doubles", register=False)
    class Doubles(Stage):
        keep: Keep
        yields = "merged"

        def choose(self, tokens: Tokens) -> Choice:
            rows = tokens.visual.norm(dim=1).topk(self.count(tokens)).indices.sort().values
            return Choice(rows, features=2 * tokens.visual[rows])

    visual = torch.randn(5, 3, requires_grad=True)
    selection = Doubles(2).select(Tokens(visual))
    assert selection.features is not None
    (gradient,) = torch.autograd.grad(selection.features.sum(), visual)
    expected = torch.zeros(5, 3)
    expected[selection.indices] = 2
    assert torch.equal(gradient, expected)


def test_a_vector_that_is_not_finite_is_an_error_that_names_the_strategy() -> None:
    @strategy("sums", register=False)
    class Sums(Stage):
        keep: Keep
        yields = "merged"

        def choose(self, tokens: Tokens) -> Choice:
            return Choice(torch.arange(1), features=tokens.visual.sum(0, keepdim=True))

    large = torch.full((3, 2), 6e4, dtype=torch.float16)
    with pytest.raises(ValueError, match="Sums: the token vectors that it made hold NaN or infinity.*float16"):
        Sums(1).select(Tokens(large))
