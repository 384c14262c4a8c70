"""Cores one by one: similarity, finiteness, ranking, lazy rows, the choice of a route."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.properties.kernels.reference import DISTANCES, KINDS, cloud
from tokenprune.kernels import affinity, all_finite, choose, gram, squared_distances, top_each, top_k, unit_rows
from tokenprune.kernels.lazy import LazyRows
from tokenprune.repmax import distance_matrix


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_affinity_is_the_distance_up_to_scale_and_shift(kind: str, distance: Any) -> None:
    for n, d in ((1, 3), (40, 7), (530, 515)):
        x = cloud(kind, n, d, n)
        exact = torch.from_numpy(distance_matrix(x, distance))
        found = affinity(x[None], distance)[0]
        assert found.dtype == torch.float32
        if distance == "cosine":
            exact -= 1
        elif distance == "angular":
            exact /= 2
        elif exact.max() > 0:  # Euclidean distances are of the image over a power of two
            exact *= 2.0 ** torch.round(torch.log2(found.max() / exact.max()))
        assert (found - exact).abs().max() <= 2e-3 * max(1.0, float(exact.max()))
        if distance in ("cosine", "sqeuclidean"):
            assert (found - exact).abs().max() <= 1e-5 * max(1.0, float(exact.max()))
            # Up to rounding: some BLAS settings add the terms of an entry and of its mirror image in different orders.
            assert (found - found.mT).abs().max() <= 1e-5 * max(1.0, float(exact.max()))


def test_gram_has_equal_entries_for_equal_rows() -> None:
    which = torch.randint(5, (600,), generator=torch.Generator().manual_seed(0))
    for d in (64, 1100):
        product = gram(cloud("random", 5, d, 0)[which])
        for a in range(5):
            for b in range(5):
                assert len(product[which == a][:, which == b].unique()) == 1


def test_gram_writes_where_it_is_told_and_scales() -> None:
    for x in (cloud("random", 6, 3, 0), cloud("random", 520, 513, 0), cloud("random", 4, 3, 0).expand(2, 4, 3)):
        out = torch.full((*x.shape[:-1], x.shape[-2]), torch.nan)
        assert gram(x, out=out, scale=-2.0) is out
        assert torch.allclose(out, -2 * x @ x.mT, rtol=1e-4, atol=1e-3)


def test_unit_rows_of_any_size() -> None:
    x = torch.tensor([[3e30, -4e30], [0.0, 0.0], [-3e-30, 4e-30], [5.0, 0.0]])
    assert torch.allclose(unit_rows(x), torch.tensor([[0.6, -0.8], [0.0, 0.0], [-0.6, 0.8], [1.0, 0.0]]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_is_found(bad: float) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        good = torch.full((50, 40), 6e4, dtype=dtype)  # the sum is beyond float16
        spoilt = good.clone()
        spoilt[17, 3] = bad
        both = good.clone()
        both[0, 0], both[1, 1] = bad, -bad
        assert all_finite([good, spoilt, torch.empty(0, 3), both]) == [True, False, True, False]
        assert all_finite([good, good[:1]]) == [True, True]
    assert all_finite([torch.full((9,), 3e38), torch.full((9,), -1e308, dtype=torch.float64)]) == [True, True]
    assert all_finite([]) == []


def test_ranking_each_equals_ranking_alone() -> None:
    scores = [torch.tensor([1.0, 3.0, 3.0, -torch.inf]), torch.tensor([2.0, 2.0]), torch.tensor([-torch.inf, 0.0, 0.0])]
    for keeps in ([4, 2, 3], [2, 2, 2], [1, 1, 2]):
        for score, keep, pair in zip(scores, keeps, top_each(scores, keeps), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, top_k(score, keep), strict=True))
    assert top_each([], []) == []


@pytest.mark.parametrize("distance", DISTANCES)
def test_lazy_rows_are_those_of_the_matrix(distance: Any) -> None:
    for kind in KINDS:
        x = cloud(kind, 37, 9, 4)
        matrix, lazy = affinity(x[None], distance)[0], LazyRows(x, distance)
        close: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-3 if distance in ("euclidean", "angular") else 1e-5}
        others = ~torch.eye(37, dtype=torch.bool)
        for i in (0, 17, 36):
            row = lazy.row(i)
            assert torch.equal(row, lazy.rows(torch.tensor([i]))[0])
            assert torch.allclose(row[others[i]], matrix[i][others[i]], **close)
        assert torch.allclose(lazy.reduce("sum"), matrix.sum(1), rtol=1e-4, atol=5e-2)
        assert torch.allclose(lazy.reduce("max"), matrix.amax(1), **close)
        assert torch.allclose(lazy.reduce("min"), matrix.masked_fill(~others, torch.inf).amin(1), **close)


def test_distances_from_a_point_are_those_of_the_plain_formula() -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        images = [cloud("random", 300, 1100, seed, dtype) for seed in range(2)]  # more than one block of rows
        centre = cloud("random", 2, 1100, 9, torch.float64 if dtype == torch.float64 else torch.float32)
        scale = torch.tensor([1.0, 0.5], dtype=centre.dtype)
        found = squared_distances(images, centre, scale)
        for image, point, factor, row in zip(images, centre, scale, found, strict=True):
            expected = np.square(image.double().numpy() * float(factor) - point.double().numpy()).sum(1)
            assert np.allclose(row.numpy(), expected, rtol=1e-5)


def test_the_choice_of_a_route() -> None:
    cpu = torch.device("cpu")
    assert choose(576, 64, cpu) == "host"
    assert choose(2880, 32, cpu) == "lazy"  # 32 rows of 2880 are not worth the matrix
    assert choose(20_000, 10_000, cpu) == "lazy"  # the matrix would have 1.6 GB


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, tokenprune, tokenprune.baselines; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
