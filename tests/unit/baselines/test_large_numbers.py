"""Inputs near the largest float: what a merging method makes is right, or it is an error of that method."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenprune import Choice, GreedyRepMax, NotFiniteError, PruningStrategy, Selection, Stage, Tokens, strategy
from tokenprune.baselines import (
    TRIM,
    GridPool,
    MustDrop,
    MustDropMerge,
    PruMerge,
    PruMergePlus,
    SparseVLM,
    ToMe,
    VisionZip,
)
from tokenprune.baselines.sparsevlm import SparseVLMStage, recycle
from tokenprune.baselines.visionzip import VISION_CLS
from tokenprune.core.registry import builtin
from tokenprune.core.signals import DECODER_HIDDEN, PROJECT, VISION_STATES
from tokenprune.core.text import example
from tokenprune.testing import random_tokens

METHODS: list[PruningStrategy] = [
    GridPool(7),
    MustDropMerge(),
    MustDrop.published(192),
    replace(MustDrop.published(192), merge=True),
    PruMerge(),
    PruMerge(9),
    PruMergePlus(),
    PruMergePlus(9),
    SparseVLM(9),
    SparseVLMStage(9),
    SparseVLMStage(9, official=True),
    ToMe(9),
    ToMe(r=3),
    TRIM(plus=True),
    TRIM(9, plus=True),
    VisionZip(9),
    VisionZip(30),
    VisionZip(9) >> GreedyRepMax(4),
]
LARGE = (VISION_STATES, VISION_CLS, DECODER_HIDDEN)
"""Signals of which new tokens are made; what is only compared stays as it is."""


def image(dtype: torch.dtype, largest: float) -> Tokens:
    """Patches that resemble their neighbours, with the given largest number, in float64 but exact in `dtype`."""
    tokens = random_tokens(6, 9, dtype=torch.float64)
    block = torch.arange(6)[:, None] // 3 * 3 + torch.arange(9) // 3
    alike = torch.randn(6, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[block.flatten()]

    def large(value: torch.Tensor) -> torch.Tensor:
        value = alike + 0.05 * value if len(value) == len(alike) else value
        return value / value.abs().max() * largest

    signals = {s: large(v) if s in LARGE else v for s, v in tokens.signals.items()}
    wide = replace(tokens, visual=large(tokens.visual), signals={**signals, PROJECT: lambda rows: rows})
    return in_dtype(in_dtype(wide, dtype), torch.float64)


def in_dtype(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    signals = {signal: cast(value) for signal, value in tokens.signals.items()}
    return replace(tokens, visual=cast(tokens.visual), text=cast(tokens.text), signals=signals)


def made(selection: Selection) -> torch.Tensor:
    parts = [part for part in (selection.features, selection.extra) if part is not None]
    return torch.cat(parts) if parts else torch.zeros(0)


def test_every_method_that_makes_tokens_is_here() -> None:
    tried: set[type] = {type(stage) for method in METHODS for stage in method.stages}
    tried |= {type(method) for method in METHODS}
    for cls in builtin().values():
        makes = {stage.yields for stage in example(cls).stages} & {"merged", "extended"}
        assert cls in tried or not makes, f"{cls.__name__} makes tokens; add it here"


@pytest.mark.parametrize("share", [0.3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_made_tokens_are_right_or_refused(method: PruningStrategy, dtype: torch.dtype, share: float) -> None:
    """Against the same method in float64, whose range is far larger; its answer fits into the dtype or does not."""
    limit = torch.finfo(dtype).max
    wide = image(dtype, share * limit)
    narrow, expected = in_dtype(wide, dtype), method.select(wide)
    if isinstance(method, ToMe):  # rounds its keys in every layer, so that in half precision other pairs merge
        small = in_dtype(replace(wide, visual=wide.visual / 64), dtype)
        expected = method.select(small)
        expected = replace(expected, features=made(expected).double() * 64)
    fits = made(expected).abs().max() <= limit if len(made(expected)) else True
    if not fits:
        first = next((stage for stage in method.stages if stage.yields == "merged"), method)
        with pytest.raises(NotFiniteError, match=f"{type(first).__name__}: .* NaN or infinity"):
            method.select(narrow)
        return
    selection = method.select(narrow)
    assert selection.indices.tolist() == expected.indices.tolist()
    tolerance = 4 * torch.finfo(dtype).eps + 1e-5
    torch.testing.assert_close(
        made(selection).double() / limit, made(expected) / limit, rtol=tolerance, atol=tolerance, check_dtype=False
    )


def test_some_of_these_are_refused() -> None:
    narrow = in_dtype(image(torch.float16, 0.999 * 65504), torch.float16)
    refused = []
    for method in METHODS:
        try:
            method.select(narrow)
        except NotFiniteError:
            refused.append(method)
    assert VisionZip(30) in refused, "target plus mean is twice as large"
    assert GridPool(7) not in refused, "a mean is never larger than the largest"


@pytest.mark.parametrize("size", [1e-30, 1e10, 1e18, 1e30, 3e38])
def test_recycling_clusters_large_numbers_as_float64_does(size: float) -> None:
    groups = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).repeat_interleave(8, 0)
    features = groups + 0.01 * torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    features = features / features.abs().max() * size
    torch.testing.assert_close(recycle(features).double(), recycle(features.double()), rtol=1e-5, atol=0.0)


@strategy("overflows", register=False)
class Overflows(Stage):
    """Third parties' methods: a sum that has no room."""

    yields = "merged"

    def requested(self, tokens: Tokens) -> int:
        return 1

    def choose(self, tokens: Tokens) -> Choice:
        total = tokens.visual.abs().sum(0, keepdim=True)
        return Choice(torch.zeros(1, dtype=torch.int64), features=total)


def test_a_batch_names_the_method_and_large_finite_numbers_pass() -> None:
    small, large = Tokens(torch.ones(4, 3)), Tokens(torch.full((4, 3), 1e38))
    assert [s.kept for s in Overflows().select_batch([small, small])] == [1, 1]
    for kind in (NotFiniteError, ValueError, RuntimeError):
        with pytest.raises(kind, match="Overflows"):
            Overflows().select_batch([small, large])
    # Their own sum is infinite, which proves nothing.
    big = Overflows().select(Tokens(torch.full((1, 3), 3e38)))
    assert big.features is not None
    assert big.features.isfinite().all()
