"""TrimTokenator against the vectors of a third-party re-implementation, index for index.

The vectors are read from `$TOKENPRUNE_SHARED/parity` or `../shared/parity` when there; a seeded naive reference in
float64, written from the same rule, is checked everywhere and against the vectors too.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenprune import GreedyRepMax, MIAlignment, Tokens, TrimTokenator
from tokenprune.alignment import alignment_score
from tokenprune.repmax import greedy_repmax

SHARED = Path(os.environ.get("TOKENPRUNE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FILES = sorted((SHARED / "parity").glob("trimtokenator_thirdparty_*.npz"))


def reference(visual: np.ndarray, text: np.ndarray, first: int, keep: int) -> tuple[list[int], list[int]]:
    """Both stages by plain loops in float64: (stage 1 ascending, stage 2 in pick order)."""
    v, t = visual.astype(np.float64), text.astype(np.float64)
    scores = [-np.mean([np.sum((a - b) ** 2) for b in t]) for a in v]
    survivors = sorted(sorted(range(len(v)), key=lambda i: (-scores[i], i))[:first])
    unit = [v[i] / math.sqrt(np.sum(v[i] ** 2)) for i in survivors]
    similarity = [[float(a @ b) for b in unit] for a in unit]
    picked = [min(range(len(unit)), key=lambda i: (np.mean(similarity[i]), i))]
    while len(picked) < keep:
        rest = [i for i in range(len(unit)) if i not in picked]
        picked.append(min(rest, key=lambda i: (np.mean([similarity[i][j] for j in picked]), i)))
    return survivors, [survivors[i] for i in picked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_reference(seed: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    n, m, d = (60, 5, 16) if seed % 2 else (49, 1, 7)
    visual, text = generator.normal(size=(n, d)).astype(np.float32), generator.normal(size=(m, d)).astype(np.float32)
    first, keep = int(0.8 * n), n // 9
    survivors, order = reference(visual, text, first, keep)
    tokens = Tokens(torch.from_numpy(visual).to(dtype), text=torch.from_numpy(text).to(dtype))
    assert MIAlignment(first).select(tokens).indices.tolist() == survivors
    selection = TrimTokenator(keep, align=first).select(tokens)
    assert selection.indices.tolist() == sorted(order)
    assert selection.order is not None
    assert selection.order.tolist() == order


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_vectors(path: Path) -> None:
    case = np.load(path)
    visual, text = torch.from_numpy(case["visual"]), torch.from_numpy(case["text"])
    n = visual.shape[0]
    first, keep = int(float(case["param_stage1_ratio"]) * n), int(float(case["param_keep_ratio"]) * n)  # it rounds down
    tokens = Tokens(visual, text=text)
    assert np.allclose(alignment_score(visual, text).numpy(), case["alignment"], rtol=1e-4)
    stage1 = MIAlignment(first).select(tokens)
    assert stage1.indices.tolist() == case["stage1_kept_sorted"].tolist()
    assert stage1.order is not None
    assert stage1.order.tolist() == case["stage1_by_score"].tolist()
    survivors = stage1.indices
    picks = survivors[greedy_repmax(visual[survivors], keep)]
    assert picks.tolist() == case["selected_in_order"].tolist()
    for strategy in (TrimTokenator(keep, align=first), MIAlignment(first) >> GreedyRepMax(keep)):
        selection = strategy.select(tokens)
        assert selection.indices.tolist() == case["kept_sorted"].tolist()
        assert selection.order is not None
        assert selection.order.tolist() == case["selected_in_order"].tolist()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reference_equals_the_vectors_too(path: Path) -> None:
    case = np.load(path)
    n = case["visual"].shape[0]
    first, keep = int(float(case["param_stage1_ratio"]) * n), 8  # the first picks are enough for the slow loop
    survivors, order = reference(case["visual"], case["text"], first, keep)
    assert survivors == case["stage1_kept_sorted"].tolist()
    assert order == case["selected_in_order"][:keep].tolist()
