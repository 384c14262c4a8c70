"""Any object as any argument of the pure functions: the right answer, or an error that names the argument."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.alignment import alignment_score
from tokenprune.kernels import top_k
from tokenprune.repmax import (
    Certificate,
    ExactResult,
    certify,
    exact_repmax,
    greedy_repmax,
    greedy_repmax_batched,
    local_search_repmax,
    mean_pairwise_distance,
    pair_sum,
    random_expectation,
    relax_round_repmax,
    reverse_greedy_repmax,
)

CLOUD = np.random.default_rng(3).normal(size=(7, 3))
TENSOR = torch.from_numpy(CLOUD)

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "greedy_repmax": (greedy_repmax, {"x": CLOUD, "k": 3, "distance": "cosine", "start": "first", "seed": 0}),
    "greedy_repmax of a tensor": (greedy_repmax, {"x": TENSOR, "k": 3, "distance": "cosine", "start": 1, "seed": 0}),
    "greedy_repmax_batched": (greedy_repmax_batched, {"x": TENSOR[None], "k": 3, "distance": "cosine", "start": 0}),
    "reverse_greedy_repmax": (reverse_greedy_repmax, {"x": CLOUD, "k": 3, "distance": "cosine"}),
    "reverse_greedy_repmax of a tensor": (reverse_greedy_repmax, {"x": TENSOR, "k": 3, "distance": "cosine"}),
    "relax_round_repmax": (relax_round_repmax, {"x": CLOUD, "k": 3, "distance": "cosine", "quality": np.zeros(7)}),
    "local_search_repmax": (
        local_search_repmax,
        {"x": CLOUD, "k": 3, "distance": "cosine", "start": [0, 1, 2], "seed": 0, "max_swaps": 2},
    ),
    "exact_repmax": (
        exact_repmax,
        {
            "x": CLOUD,
            "k": 3,
            "distance": "cosine",
            "solver": "auto",
            "time_limit": 5.0,
            "rel_tol": 1e-9,
            "quality": np.zeros(7),
            "callback": None,
        },
    ),
    "certify": (
        certify,
        {
            "x": CLOUD,
            "indices": [0, 2, 4],
            "distance": "cosine",
            "effort": "tangent",
            "time_limit": 5.0,
            "quality": np.zeros(7),
        },
    ),
    "mean_pairwise_distance": (mean_pairwise_distance, {"x": CLOUD, "indices": [0, 2], "distance": "cosine"}),
    "pair_sum": (pair_sum, {"x": CLOUD, "indices": [0, 2], "distance": "cosine"}),
    "random_expectation": (random_expectation, {"x": CLOUD, "distance": "cosine"}),
    "alignment_score": (
        alignment_score,
        {"visual": TENSOR, "text": TENSOR[:2], "metric": "sqeuclidean", "reduce": "mean"},
    ),
    "top_k": (top_k, {"scores": torch.tensor([1.0, 3.0, 2.0]), "k": 2}),
}
ARGUMENTS = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]
PREFIXES = {"greedy_repmax_batched": "greedy_repmax: ", "mean_pairwise_distance": "(mean_pairwise_distance|pair_sum): "}
PREFIXES["random_expectation"] = "(random_expectation|pair_sum): "
TOGETHER = {("k", "x"), ("indices", "x"), ("distance", "x"), ("text", "visual"), ("quality", "x"), ("start", "x")}
"""Arguments that may not fit together: either may be named."""


def odd(kind: str) -> torch.Tensor:
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "sparse": lambda: torch.eye(7).to_sparse(),
        "compressed": lambda: torch.eye(7).to_sparse_csr(),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)]),
        "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2, 3)] * 2, layout=torch.jagged),
        "quantised": lambda: torch.quantize_per_tensor(torch.zeros(7, 3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.zeros(7, 3, device="meta"),
        "float8": lambda: torch.zeros(7, 3).to(torch.float8_e4m3fn),
        "complex": lambda: torch.zeros(7, 3, dtype=torch.complex64),
        "bool": lambda: torch.ones(7, 3, dtype=torch.bool),
        "no width": lambda: torch.zeros(7, 0),
        "no rows": lambda: torch.zeros(0, 3),
        "vector": lambda: torch.zeros(7),
        "number": lambda: torch.tensor(2),
        "nan": lambda: torch.full((7, 3), torch.nan),
        "infinite": lambda: torch.full((7, 3), torch.inf),
        "batch": lambda: torch.zeros(2, 7, 3),
        "grad": lambda: TENSOR.float().requires_grad_(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these kinds are on trial, some on their way out
        return makers[kind]()


KINDS = ["sparse", "compressed", "nested", "jagged", "quantised", "meta", "float8", "complex", "bool", "no width"]
KINDS += ["no rows", "vector", "number", "nan", "infinite", "batch", "grad"]
anything = st.one_of(
    st.sampled_from(KINDS).map(odd),
    st.integers(-3, 9),
    st.sampled_from([2**63, 2**64, 10**400, -(10**400), True, None, 1.5, float("nan"), float("inf"), "x", b"x", 1j]),
    st.text(max_size=3),
    st.lists(st.integers(-1, 8), max_size=4),
    st.lists(st.lists(st.floats(-2, 2), max_size=3), max_size=3),
    st.sampled_from(
        [
            {1, 2},
            {},
            object(),
            len,
            range(3),
            np.zeros((7, 3), dtype=complex),
            np.array([["a"]]),
            np.zeros((0, 3)),
            np.zeros((7, 0)),
            np.full((7, 3), np.nan),
            np.ma.masked_array(CLOUD, mask=CLOUD > 0),
            np.array([0, 2], dtype=np.uint64),
            np.array([2**63 + 1], dtype=np.uint64),
            CLOUD.astype(np.float16),
            CLOUD.tolist(),
            np.int64(3),
            "precomputed",
            "euclidean",
            "pair",
        ]
    ),
)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@settings(max_examples=60, deadline=None)
@given(value=anything)
def test_any_object_is_right_or_refused_by_name(name: str, argument: str, value: Any) -> None:
    function, arguments = CALLS[name]
    try:
        answer = function(**{**arguments, argument: value})
    except (TypeError, ValueError) as error:
        message = str(error)
    else:
        check_answer(name, argument, value, answer)
        return
    assert re.match(PREFIXES.get(name, f"{function.__name__}: "), message)
    assert argument in message or any(one in message for one, other in TOGETHER if other == argument)


def check_answer(name: str, argument: str, value: Any, answer: Any) -> None:
    """What was accepted gives the answer for the same numbers in float64."""
    function, arguments = CALLS[name]
    if argument in ("x", "visual") and isinstance(value, (torch.Tensor, np.ndarray)):
        plain = value.detach().double().numpy() if isinstance(value, torch.Tensor) else value.astype(float)
        given = torch.from_numpy(plain) if isinstance(arguments[argument], torch.Tensor) else plain
        again = function(**{**arguments, argument: given})
        for one, other in zip(numbers_of(answer), numbers_of(again), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def numbers_of(answer: Any) -> list[Any]:
    """What an answer says, as arrays."""
    if isinstance(answer, ExactResult | Certificate):
        return [answer.indices, answer.value]
    return [np.asarray(part) for part in (answer if isinstance(answer, tuple) else (answer,))]


def test_every_call_works_as_it_is() -> None:
    for function, arguments in CALLS.values():
        function(**arguments)
