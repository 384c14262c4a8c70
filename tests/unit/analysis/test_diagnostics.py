import math
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch

from tests.unit.analysis.clouds import random_image, scenes
from tokenprune import GreedyRepMax, MIAlignment, Selection, Tokens
from tokenprune.alignment import alignment_score
from tokenprune.analysis import cross_score, diagnose, effective_rank, jaccard, overlap, participation_ratio
from tokenprune.baselines import DivPrune, FastV, GridPool, Random

matplotlib.use("agg")


def selection(*indices: int, total: int) -> Selection:
    return Selection(indices=torch.tensor(indices), total=total)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_ranks_of_orthogonal_rows(k: int) -> None:
    basis = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(k))).Q
    assert effective_rank(basis[:k]) == pytest.approx(k, rel=1e-5)
    assert participation_ratio(5 * basis[:k]) == pytest.approx(k, rel=1e-5)
    assert effective_rank(basis[:k].repeat(4, 1)) == pytest.approx(k, rel=1e-4)  # copies add no direction


def test_ranks_by_the_formula_and_at_the_edges() -> None:
    x = torch.diag(torch.tensor([3.0, 1.0]))
    p = np.array([0.75, 0.25])
    assert effective_rank(x) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert participation_ratio(x) == pytest.approx((9 + 1) ** 2 / (81 + 1))
    assert effective_rank(torch.zeros(3, 2)) == participation_ratio(torch.zeros(3, 2)) == 0.0
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"effective_rank: x must be .* got \(0, 3\)"):
        effective_rank(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="participation_ratio: x holds NaN"):
        participation_ratio(torch.full((2, 2), math.inf))


def test_every_measure_against_loops() -> None:
    tokens = random_image(3).tokens
    chosen = GreedyRepMax(6).select(tokens).indices.tolist()
    found = diagnose(tokens, selection(*chosen, total=tokens.n))
    rows = tokens.visual.double().numpy()

    def cosine(i: int, j: int) -> float:
        return float(rows[i] @ rows[j] / math.sqrt(float(rows[i] @ rows[i]) * float(rows[j] @ rows[j])))

    distances = [1 - cosine(i, j) for i, j in combinations(chosen, 2)]
    everywhere = [1 - cosine(i, j) for i, j in combinations(range(tokens.n), 2)]
    nearest = [1 - max(cosine(i, j) for j in chosen) for i in range(tokens.n)]
    gram = np.array([[cosine(i, j) for j in chosen] for i in chosen])
    assert found.kept == 6
    assert found.mean_distance == pytest.approx(np.mean(distances))
    assert found.distance_ratio == pytest.approx(np.mean(distances) / np.mean(everywhere))
    assert found.min_distance == pytest.approx(min(distances))
    assert found.coverage_error == pytest.approx(np.mean(nearest))
    assert found.coverage_worst == pytest.approx(max(nearest))
    assert found.log_det == pytest.approx(np.log(np.linalg.eigvalsh(np.eye(6) + gram)).sum())
    sigma = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert tokens.text is not None
    scores = alignment_score(tokens.visual, tokens.text).numpy()
    assert found.alignment == pytest.approx((scores[chosen].mean() - scores.mean()) / scores.std(), rel=1e-4)
    assert found.duplicates == 0


def test_orthogonal_tokens_in_closed_form() -> None:
    found = diagnose(Tokens(3 * torch.eye(8)), selection(1, 2, 5, total=8))
    assert (found.mean_distance, found.distance_ratio, found.min_distance) == (1.0, 1.0, 1.0)
    assert found.effective_rank == pytest.approx(3)
    assert found.log_det == pytest.approx(3 * math.log(2))
    assert (found.coverage_error, found.coverage_worst) == (5 / 8, 1.0)
    assert math.isnan(found.alignment)


def test_exact_duplicates_are_counted_but_other_lengths_of_one_direction_are_not() -> None:
    visual = torch.tensor([[1.0, 0.0], [1.0, -0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = diagnose(Tokens(visual), selection(0, 1, 2, 3, 4, total=5))
    assert found.duplicates == 2
    assert found.min_distance == 0.0
    one = diagnose(Tokens(visual), selection(4, total=5))
    assert one.kept == 1
    assert one.duplicates == 0
    assert all(map(math.isnan, (one.mean_distance, one.distance_ratio, one.min_distance)))


def test_new_vectors_are_measured_instead_of_the_old_ones() -> None:
    tokens = random_image().tokens
    pooled = GridPool(6).select(tokens)
    assert pooled.features is not None
    whole = Tokens(torch.cat([pooled.features, tokens.visual]))
    expected = diagnose(whole, selection(*range(pooled.kept), total=whole.n))
    assert diagnose(tokens, pooled).mean_distance == pytest.approx(expected.mean_distance)


def test_overlap_of_sets() -> None:
    a, b, c = selection(0, 1, 2, total=9), selection(2, 3, total=9), selection(7, total=9)
    assert jaccard(a.indices, a.indices) == 1.0
    found = overlap(["x", "y"], [[a, a], [b, c]])
    assert found.jaccard.tolist() == [[1.0, 0.125], [0.125, 1.0]]
    with pytest.raises(ValueError, match="1 names"):
        overlap(["x"], [[a], [b]])
    with pytest.raises(ValueError, match=r"got 2 names and \[1, 2\] selections"):
        overlap(["x", "y"], [[a], [b, c]])


def test_each_method_wins_its_own_objective_on_the_scenes() -> None:
    from matplotlib.figure import Figure

    strategies = [GreedyRepMax(28), DivPrune(28), MIAlignment(28), Random(28)]
    scores = cross_score(iter(scenes()), strategies)
    assert scores.images == 6

    def best(name: str) -> int:
        return int(np.argmax([row[name].value for row in scores.means]))

    assert (best("mean_distance"), best("min_distance"), best("alignment")) == (0, 1, 2)
    random = [
        diagnose(i.tokens, Random(28, seed=s).select(i.tokens)).distance_ratio for i in scenes() for s in range(10)
    ]
    assert np.mean(random) == pytest.approx(1.0, abs=0.12)  # one draw has a standard deviation of 0.23
    assert np.diag(scores.overlap.jaccard).tolist() == [1.0] * 4
    assert scores.plot(Figure().subplots()).get_title() == ""
    assert len(scores.overlap.plot(Figure().subplots()).texts) == 16


def test_bad_input_says_what_to_do() -> None:
    image = random_image()
    with pytest.raises(ValueError, match="made from 5 tokens but tokens has 24"):
        diagnose(image.tokens, selection(0, total=5))
    with pytest.raises(ValueError, match="keeps no token"):
        diagnose(image.tokens, Selection(indices=torch.zeros(0, dtype=torch.int64), total=24))
    with pytest.raises(ValueError, match="strategies is empty"):
        cross_score([image], [])
    with pytest.raises(ValueError, match="acts inside the language model"):
        cross_score([image], [FastV(4)])
    with pytest.raises(ValueError, match="need one name per method|no images"):
        cross_score([], [GreedyRepMax(2)])
