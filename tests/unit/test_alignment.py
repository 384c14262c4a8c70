"""`MIAlignment` against a naive float64 double loop."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import MIAlignment, Tokens
from tokenprune.alignment import Metric, Reduce, alignment_score


def naive_scores(visual: Tensor, text: Tensor, metric: str, reduce: str) -> list[float]:
    """The definition, pair by pair, in Python floats."""

    def agreement(v: list[float], t: list[float]) -> float:
        if metric == "cosine":
            norms = math.hypot(*v) * math.hypot(*t)
            return math.fsum(a * b for a, b in zip(v, t, strict=True)) / norms if norms else 0.0
        distance = math.dist(v, t)
        return -distance if metric == "euclidean" else -(distance**2)

    rows = [[agreement(v, t) for t in text.double().tolist()] for v in visual.double().tolist()]
    return [max(row) if reduce == "max" else math.fsum(row) / len(row) for row in rows]


DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SCALES = st.sampled_from([1.0, 1e-3, 100.0, 3e4])


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Small clouds with zero rows, duplicates, and norms whose squares overflow half precision."""
    n, m, d = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    seed, dtype, scale = draw(st.integers(0, 10**6)), draw(DTYPES), draw(SCALES)
    generator = torch.Generator().manual_seed(seed)
    visual, text = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    if draw(st.booleans()):
        visual[draw(st.integers(0, n - 1))] = 0
    if draw(st.booleans()):
        visual[draw(st.integers(0, n - 1))] = visual[0].clone()
    return (visual.clamp(-2, 2) * scale).to(dtype), (text.clamp(-2, 2) * scale).to(dtype)


@pytest.mark.parametrize("reduce", get_args(Reduce))
@pytest.mark.parametrize("metric", get_args(Metric))
@given(cloud=clouds(), keep=st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_equals_the_naive_loop(cloud: tuple[Tensor, Tensor], keep: int, metric: str, reduce: str) -> None:
    visual, text = cloud
    options: dict[str, Any] = {"metric": metric, "reduce": reduce}
    expected = torch.tensor(naive_scores(visual, text, metric, reduce), dtype=torch.float64)
    scale = 1.0 if metric == "cosine" else max(float(expected.abs().max()), 1e-30)
    slack = 1e-5 * scale
    scores = alignment_score(visual, text, **options)
    assert scores.dtype == (torch.float64 if visual.dtype == torch.float64 else torch.float32)
    assert (scores.double() - expected).abs().max() <= slack
    selection = MIAlignment(keep, **options).select(Tokens(visual, text=text))
    kept = selection.indices
    dropped = torch.tensor([i for i in range(len(visual)) if i not in kept.tolist()], dtype=torch.int64)
    assert len(kept) == min(keep, len(visual))
    if len(dropped):
        assert expected[kept].min() >= expected[dropped].max() - 2 * slack


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_ties_go_to_the_lowest_index(seed: int, keep: int) -> None:
    # Rows repeat, so ties are exact; the reference breaks them by index.
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(3, 4, generator=generator)[torch.randint(0, 3, (8,), generator=generator)]
    text = torch.randn(4, 4, generator=generator)
    scores = naive_scores(visual.float(), text, "sqeuclidean", "mean")
    expected = sorted(sorted(range(8), key=lambda i: (-round(scores[i], 6), i))[:keep])
    assert MIAlignment(keep).select(Tokens(visual, text=text)).indices.tolist() == expected


def test_closed_form_is_minus_distance_to_the_mean_text_up_to_a_constant() -> None:
    visual, text = torch.randn(20, 8).double(), torch.randn(6, 8).double()
    shift = alignment_score(visual, text) + (visual - text.mean(0)).square().sum(1)
    assert (shift - shift[0]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_whose_squares_overflow_still_rank(dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max
    visual = torch.tensor([[0.9 * top], [0.1 * top], [0.5 * top], [-0.2 * top]], dtype=dtype)
    text = torch.zeros(1, 1, dtype=dtype)
    assert MIAlignment(2).select(Tokens(visual, text=text)).indices.tolist() == [1, 3]
    assert alignment_score(visual, text).isfinite().all()


def test_the_order_of_text_does_not_matter_but_the_question_can_be_singled_out() -> None:
    visual = torch.tensor([[0.0], [10.0]])
    text = torch.tensor([[0.0], [0.0], [0.0], [10.0]])
    tokens = Tokens(visual, text=text, question=torch.tensor([False, False, False, True]))
    assert MIAlignment(1).select(tokens).indices.tolist() == [0]
    assert MIAlignment(1, text="question").select(tokens).indices.tolist() == [1]


def test_empty_question_is_an_error_that_names_the_way_out() -> None:
    tokens = Tokens(torch.zeros(2, 1), text=torch.zeros(2, 1), question=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="the question holds no text token; use text='prompt'"):
        MIAlignment(1, text="question").select(tokens)


@pytest.mark.parametrize(
    ("option", "value"), [("metric", "l1"), ("reduce", "median"), ("text", "answer"), ("metric", None)]
)
def test_bad_option_names_it_and_the_choices(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"MIAlignment: {option} must be one of .*{value!r}"):
        MIAlignment(1, **{option: value})  # type: ignore[arg-type]
