"""Any object as any argument of any strategy: the strategy works as text and key, or an error names the argument."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import parse
from tokenprune.baselines import FitPrune, MustDrop, PyramidDrop, SparseVLM
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import example, strategies

ARGUMENTS = [(name, field.name) for name, cls in strategies().items() for field in fields(cls) if field.init]  # type: ignore[arg-type]

numbers = st.one_of(
    st.integers(-3, 40),
    st.booleans(),
    st.none(),
    st.floats(),
    st.sampled_from([2**53, 2**63, 10**30, 10**400, -(10**400), 0.5, 1.0]),
)
anything = st.one_of(
    numbers,
    st.text(max_size=4),
    st.binary(max_size=3),
    st.lists(numbers, max_size=4),
    st.lists(numbers, max_size=4).map(tuple),
    st.lists(st.integers(-1, 12), max_size=4).map(tuple),
    st.dictionaries(st.integers(), st.integers(), max_size=2),
    st.sampled_from(
        [
            {3, 7},
            range(3, 9, 2),
            1j,
            object(),
            int,
            len,
            ((1, 2), (3, 4)),
            torch.tensor([3, 7]),
            torch.tensor(3),
            np.array([3, 7]),
            np.int64(3),
            np.float32(0.5),
            "adaptive",
            "schedule",
            "192",
            "cosine",
        ]
    ),
)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@settings(max_examples=80, deadline=None)
@given(value=anything)
def test_any_object_works_or_is_refused_by_the_name_of_its_argument(name: str, argument: str, value: Any) -> None:
    whole = example(strategies()[name])
    try:
        strategy = replace(whole, **{argument: value})  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        assert argument in str(error)  # noqa: PT017
        return
    assert isinstance(strategy, PruningStrategy)
    assert parse(repr(strategy)) == strategy
    assert hash(parse(repr(strategy))) == hash(strategy)


BAD_LAYERS = [(), (3, 3), (7, 3), (-1, 3), (0, 3), (3.0, 7.0), (3, True), (3, None), ("3",), "37", 3, {3, 7}, [[3]]]


@pytest.mark.parametrize("layers", BAD_LAYERS, ids=repr)
@pytest.mark.parametrize(
    "build",
    [
        lambda layers: PyramidDrop(0.5, layers=layers),
        lambda layers: SparseVLM(0.5, layers=layers),
        lambda layers: MustDrop(0.1, 0.1, layers=layers),
    ],
    ids=["PyramidDrop", "SparseVLM", "MustDrop"],
)
def test_layers_name_themselves(build: Any, layers: Any, request: pytest.FixtureRequest) -> None:
    title = request.node.callspec.id.split("-")[0]
    with pytest.raises((TypeError, ValueError), match=rf"^{title}: layers must be a tuple of ints .* got ") as caught:
        build(layers)
    assert repr(layers) in str(caught.value)


def test_layers_may_be_a_list() -> None:
    assert PyramidDrop(0.5, layers=[3, 7]) == PyramidDrop(0.5, layers=(3, 7))  # type: ignore[arg-type]


def test_drops_name_themselves() -> None:
    for drops in ((), (-1,), (1.5,), (float("nan"),), (True,), "12", 3, (10**400,)):
        with pytest.raises((TypeError, ValueError), match="FitPrune: (drops must be|drop must be .* in drops=)"):
            FitPrune(drops)  # type: ignore[arg-type]
