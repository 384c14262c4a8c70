"""Any object in any field of `Tokens`: accepted when plain rules allow it, else an error that names the field."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenprune.baselines  # noqa: F401 (declares the signals that the methods read)
from tokenprune import Tokens
from tokenprune.core.registry import builtin
from tokenprune.core.signals import FIELDS, PROMPT_NUMBER, TOWER_SIZE, Signal
from tokenprune.core.text import example
from tokenprune.testing import random_tokens

ROWS, COLUMNS = 2, 3
N, WIDTH, TEXT = 6, 16, 7
WHOLE = random_tokens(ROWS, COLUMNS)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (torch.float8_e4m3fn, torch.complex64, torch.int64, torch.int32, torch.uint8, torch.bool)

SHAPES: dict[str, tuple[int | None, int | None]] = {
    "visual": (N, WIDTH),
    "text": (TEXT, WIDTH),
    "cls_attention": (None, N),
    "cls_attention.at(0)": (None, N),
    "cls_attention.at(-1)": (None, N),
    "tower_size": (1, N),
    "decoder_attention": (None, N),
    "decoder_next_attention": (None, N),
    "decoder_text_attention": (5, N),
    "decoder_peaks": (2, N),
    "vision_states": (N, WIDTH),
    "vision_keys": (N, None),
    "vision_cls": (1, WIDTH),
    "vision_last_keys": (N, 12),
    "vision_last_cls": (2, 12),
    "clip_visual": (N, 10),
    "clip_text": (None, 10),
    "decoder_keys": (N, 8),
    "decoder_states": (N, 8),
    "decoder_hidden": (N, WIDTH),
    "decoder_entered": (None, WIDTH),
    "decoder_text": (5, WIDTH),
    "decoder_text_keys": (None, 8),
    "decoder_text_states": (None, 8),
}
"""What fits beside the other fields of `WHOLE`; None for any number from 1 on."""
MAY_BE_EMPTY = {"decoder_text_keys", "decoder_text_states", "decoder_entered"}
ARGUMENTS = ("visual", "text", "question", "grid", "index", "total")
SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (*WHOLE.signals, TOWER_SIZE, PROMPT_NUMBER)}
OTHER = {"question", "grid", "tiles", "tile_grid", "index", "total", "key", "prompt", "project"}


def made(changes: dict[str, Any]) -> Tokens:
    """`WHOLE` with other values, by name."""
    assert changes.keys() <= {*ARGUMENTS, *SIGNALS}
    arguments: dict[str, Any] = {name: getattr(WHOLE, name) for name in ARGUMENTS}
    signals = {signal: changes.get(signal.name, WHOLE.signals.get(signal)) for signal in SIGNALS.values()}
    return Tokens(**arguments | {n: v for n, v in changes.items() if n in ARGUMENTS}, signals=signals)


def odd_tensor(kind: str) -> torch.Tensor:
    """Tensors of the right size that hold no plain numbers."""
    x = torch.zeros(N, WIDTH)
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "sparse": lambda: x.to_sparse(),
        "compressed": lambda: torch.eye(N).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "meta": lambda: x.to("meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, WIDTH), torch.zeros(4, WIDTH)]),
        "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2, WIDTH)] * 2, layout=torch.jagged),
        "scalar": lambda: torch.tensor(1.0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these kinds are on trial, some on their way out
        return makers[kind]()


sizes = st.sampled_from([0, 1, 2, N, TEXT, 8, 10, 12, WIDTH])
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=torch.float32).to(dtype),
    st.lists(sizes, max_size=3),
    st.sampled_from(FLOATS + OTHERS),
)
odd = st.sampled_from(["sparse", "compressed", "quantised", "meta", "nested", "jagged", "scalar"]).map(odd_tensor)
plain = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, N, 2**53, 2**63, -(2**70), 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=7),
    st.tuples(st.integers(-2, 7), st.integers(-2, 7)),
    st.lists(st.one_of(st.integers(1, 6), st.floats(), st.booleans()), max_size=3).map(tuple),
    st.sampled_from([np.zeros((N, WIDTH)), np.arange(N), np.int64(3), object(), {}, len, torch, float]),
)
vectors = st.builds(
    lambda values, dtype: torch.tensor(values).to(dtype),
    st.lists(st.sampled_from([-(2**62), -3, -1, 0, 1, 2, 3, 4, 5, 6, 40, 2**62]), min_size=N, max_size=N),
    st.sampled_from([torch.int64, torch.int64, torch.int64, torch.bool, torch.int32, torch.float32]),
)
anything = st.one_of(tensors, odd, plain, vectors)


def whole_number(value: object, low: int, high: int = 2**53 - 1) -> bool:
    return type(value) is int and low <= value <= high


def pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(whole_number(part, 1) for part in value)


def allowed(name: str, value: Any) -> bool:
    """The rules in words, with Python's own numbers."""
    if value is None:
        return name not in ("visual", "text")  # the question is a mask over the text
    if name == "grid":
        return pair(value) and value[0] * value[1] == N
    if name == "tile_grid":
        return pair(value)
    if name == "key":
        return type(value) is int
    if name == "prompt":
        return whole_number(value, 0)
    if name == "total":
        return whole_number(value, 1) and value == N  # the grid holds as many
    if name == "project":
        return callable(value)
    if not isinstance(value, torch.Tensor) or value.is_nested or value.layout != torch.strided or value.is_meta:
        return False
    if name == "question":
        return value.dtype == torch.bool and tuple(value.shape) == (TEXT,)
    if name in ("index", "tiles"):
        if value.dtype != torch.int64 or tuple(value.shape) != (N,):
            return False
        numbers = value.tolist()
        if name == "tiles":
            return min(numbers) >= -1
        return numbers == sorted(set(numbers)) and min(numbers) >= 0 and max(numbers) < 2**53
    if value.dtype not in FLOATS or value.ndim != 2 or value.shape[1] == 0:
        return False
    if value.shape[0] == 0 and name not in MAY_BE_EMPTY:
        return False
    return all(size in (None, got) for size, got in zip(SHAPES[name], value.shape, strict=True))


@pytest.mark.parametrize("name", sorted({*SHAPES, *OTHER}))
@settings(max_examples=150, deadline=None)
@given(value=anything)
def test_any_object_is_right_or_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    if allowed(name, value):
        tokens = made({name: value})
        kept = getattr(tokens, name) if name in ARGUMENTS else tokens.signals.get(SIGNALS[name])
        assert kept is value
        assert tokens.n == N
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        made({name: value})
    message = str(caught.value)
    assert message.startswith("Tokens: ")
    if name == "visual" and isinstance(value, torch.Tensor) and value.ndim == 2:
        return  # other fields no longer fit; either may be named
    assert name in message


def test_every_signal_of_a_built_in_method_is_fuzzed() -> None:
    read = {signal for cls in builtin().values() for signal in example(cls).needs} - FIELDS
    assert {signal.name for signal in read} <= {*SHAPES, *OTHER}


rows = st.one_of(anything, st.lists(st.integers(-1, N), max_size=N).map(lambda v: torch.tensor(v, dtype=torch.int64)))


@settings(max_examples=300, deadline=None)
@given(value=rows)
def test_take_accepts_row_numbers_and_nothing_else(value: Any) -> None:
    right = (
        isinstance(value, torch.Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.dtype == torch.int64
        and value.ndim == 1
        and value.shape[0] > 0
        and len(set(value.tolist())) == value.shape[0]
        and all(0 <= row < N for row in value.tolist())
    )
    if right:
        part = WHOLE.take(value)
        assert part.positions.tolist() == value.tolist()
        assert torch.equal(part.visual, WHOLE.visual[value])
        assert Tokens.take(part, torch.tensor([0])).positions.tolist() == value[:1].tolist()
        return
    with pytest.raises((TypeError, ValueError), match=r"Tokens\.take: rows"):
        WHOLE.take(value)


@settings(max_examples=100, deadline=None)
@given(value=st.one_of(tensors, odd, plain), name=st.sampled_from(["features", "extra"]))
def test_take_accepts_new_vectors_of_the_same_kind_and_nothing_else(value: Any, name: str) -> None:
    taken = torch.tensor([4, 1])
    fits = isinstance(value, torch.Tensor) and not value.is_nested and value.layout == torch.strided
    fits = fits and not value.is_meta and value.dtype == torch.float32 and value.ndim == 2 and value.shape[1] == WIDTH
    if fits and (name == "extra" or value.shape[0] == 2):
        assert WHOLE.take(taken, **{name: value}).visual.shape[1] == WIDTH
        return
    with pytest.raises((TypeError, ValueError), match=rf"Tokens\.take: {name}"):
        WHOLE.take(taken, **{name: value})
