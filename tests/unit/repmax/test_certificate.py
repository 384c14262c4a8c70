"""Certificates: what they say, that they survive the disk, and that forged ones do not verify."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.properties.repmax.clouds import DISTANCES
from tokenprune.repmax import Certificate, certify, exact_repmax, greedy_repmax, random_expectation, token_cloud
from tokenprune.repmax.proof import Record

EFFORTS = ("tangent", "convex", "shifted", "exact")
CLOUD = token_cloud("dups", 70, 12, seed=2)
SET = greedy_repmax(CLOUD, 11)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("effort", EFFORTS)
def test_says_the_truth_and_survives_the_disk(distance: Any, effort: Any, tmp_path: Path) -> None:
    best = exact_repmax(CLOUD, 11, distance=distance)
    certificate = certify(CLOUD, SET, distance=distance, effort=effort)
    assert certificate.value <= best.value <= certificate.upper_bound
    assert certificate.gap == pytest.approx((certificate.upper_bound - certificate.value) / certificate.upper_bound)
    assert certificate.ratio == 1 - certificate.gap
    assert certificate.normalised_gap > certificate.gap
    assert certificate.random_value == pytest.approx(random_expectation(CLOUD, distance=distance))
    certificate.save(tmp_path / "c.npz")
    loaded = Certificate.load(tmp_path / "c.npz")
    assert loaded.verify(CLOUD)
    assert loaded.summary() == certificate.summary() == json.loads(json.dumps(certificate.summary()))
    assert loaded.indices.tolist() == sorted(SET.tolist())
    if effort == "exact":
        assert certificate.upper_bound == pytest.approx(best.value, rel=1e-8)
        assert len(loaded.tree) == len(certificate.tree) >= 1


def test_torch_tokens_of_any_dtype() -> None:
    tokens = torch.from_numpy(CLOUD).to(torch.bfloat16)
    kept = greedy_repmax(tokens, 11)
    certificate = certify(tokens, kept)
    assert certificate.verify(tokens)
    assert certificate.verify(tokens.double().numpy())
    assert not certificate.verify(CLOUD)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("k", [0, 1, 2, 69, 70])
def test_extreme_sizes(effort: Any, k: int) -> None:
    certificate = certify(CLOUD, np.arange(k), effort=effort)
    assert certificate.problems(CLOUD) == []
    if k in (0, 1, 70):
        assert certificate.gap == 0.0


@pytest.mark.parametrize("effort", EFFORTS)
def test_matrices_that_are_not_of_negative_type(effort: Any) -> None:
    upper = np.triu(np.random.default_rng(0).random((9, 9)), 1)
    matrix = upper + upper.T
    best = exact_repmax(matrix, 4, distance="precomputed", solver="enumerate").value
    certificate = certify(matrix, [0, 1, 2, 3], distance="precomputed", effort=effort)
    assert certificate.upper_bound >= best
    assert certificate.verify(matrix, quality=None)
    if effort != "exact":
        assert certificate.u is not None
        assert not replace(certificate, u=None, digest="").verify(matrix)


@pytest.mark.parametrize("effort", EFFORTS)
def test_forgeries_do_not_verify(effort: Any) -> None:
    # Without the digest, which would see every change: here the evidence itself must not prove what is forged.
    certificate = replace(certify(CLOUD, SET, distance="euclidean", effort=effort), digest="")
    assert certificate.verify(CLOUD)
    bound, value = certificate.upper_bound, certificate.value
    rng = np.random.default_rng(0)
    other = CLOUD.copy()
    other[5] += 1e-3
    forged: list[Certificate] = [
        replace(certificate, upper_bound=bound * (1 - 1e-7)),
        replace(certificate, upper_bound=bound * (1 + 1e-3)),
        replace(certificate, upper_bound=float("nan")),
        replace(certificate, value=value * (1 + 1e-7)),
        replace(certificate, random_value=certificate.random_value * 1.001),
        replace(certificate, indices=np.arange(11)),
        replace(certificate, indices=certificate.indices[:-1]),
        replace(certificate, indices=np.array([0] * 11)),
        replace(certificate, n=71),
        replace(certificate, distance="cosine"),
        replace(certificate, with_quality=True),
    ]
    if effort == "exact":
        forged.append(replace(certificate, tree=()))
    else:
        noise = rng.normal(size=70)
        forged += [
            replace(certificate, z=None),
            replace(certificate, z=certificate.z + noise),  # type: ignore[operator]
            replace(certificate, z=1e9 * noise),
            replace(certificate, z=np.full(70, np.nan)),
            replace(certificate, z=noise[:-1]),
            replace(certificate, u=np.full(70, 100.0)),
            replace(certificate, effort="exact"),
        ]
    for number, forgery in enumerate(forged):
        assert not forgery.verify(CLOUD), number
        assert forgery.problems(CLOUD) != []
    assert not certificate.verify(other)
    assert not certificate.verify(CLOUD[:-1])
    assert not certificate.verify(np.full_like(CLOUD, np.nan))
    assert not certificate.verify(CLOUD, quality=np.zeros(70))


def hard_tree() -> tuple[Any, Certificate]:
    x = token_cloud("isotropic", 24, 40, seed=1)
    certificate = replace(certify(x, greedy_repmax(x, 8), effort="exact"), digest="")
    assert len(certificate.tree) > 5
    assert certificate.verify(x)
    return x, certificate


def test_every_part_of_a_proof_matters() -> None:
    """Drop or bend any one decision of the tree and it no longer proves its bound."""
    x, certificate = hard_tree()
    tree = certificate.tree
    rejected = 0
    for number in range(1, len(tree)):
        # A subtree cut off leaves only its parent's bound, which is above the claim.
        cut = tuple(record for record in tree[:number])
        rejected += not replace(certificate, tree=cut).verify(x)
        moved = [*tree[:number], replace_record(tree[number], point=(tree[number].point + 1) % 24), *tree[number + 1 :]]
        assert not replace(certificate, tree=tuple(moved)).verify(x)
    assert rejected == len(tree) - 1


def replace_record(record: Record, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "parent": record.parent,
        "point": record.point,
        "taken": record.taken,
        "steps": record.steps,
    }
    return Record(**(values | changes))


def test_unjustified_decisions_are_refused() -> None:
    x, certificate = hard_tree()
    root = certificate.tree[0]
    best = certificate.tree
    optimum = exact_repmax(x, 8).indices
    for points, name in ((optimum[:1], "zeros"), (np.setdiff1d(np.arange(24), optimum)[:1], "ones")):
        steps = [*root.steps[:-1], replace(root.steps[-1], **{name: points})]  # type: ignore[arg-type]
        forged = replace(certificate, tree=(replace_record(root, steps=steps), *best[1:]))
        assert not forged.verify(x)
    first = root.steps[0]
    for bad in (
        replace(first, shift=np.full(24, 10.0)),
        replace(first, shift=np.zeros(3)),
        replace(first, z=first.z[1:]),
    ):
        assert not replace(certificate, tree=(replace_record(root, steps=[bad]), *best[1:])).verify(x)
    loop = (*best[:1], replace_record(best[1], parent=1), *best[2:])
    assert not replace(certificate, tree=loop).verify(x)
    twice = (*best, best[1])
    assert not replace(certificate, tree=twice).verify(x)


def test_stopped_search_still_certifies() -> None:
    x = token_cloud("isotropic", 60, 200, seed=0)
    for limit in (0.0, 0.2):
        certificate = certify(x, greedy_repmax(x, 15), effort="exact", time_limit=limit)
        assert certificate.gap > 1e-6
        assert certificate.problems(x) == []


def test_not_a_certificate(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="is no certificate"):
        Certificate.load(tmp_path / "x.npz")


def test_errors() -> None:
    with pytest.raises(ValueError, match="certify: effort must be one of"):
        certify(CLOUD, SET, effort="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="certify: indices must be unique"):
        certify(CLOUD, [1, 1])
    with pytest.raises(ValueError, match="certify: x holds NaN"):
        certify(np.full((3, 2), np.nan), [0])
