"""How often a selection reads a number back from the tokens' device: never inside, twice per batch and stage around."""

from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.properties.kernels.reference import cloud
from tokenprune import GreedyRepMax, MIAlignment, Tokens, TrimTokenator
from tokenprune.baselines import CDPruner, DivPrune, FasterVLM
from tokenprune.core import answers
from tokenprune.kernels import determinant_each, images, pick_each

# What makes the host wait for a device: reading a number, and results whose shape depends on numbers.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "is_nonzero")


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("start", ["sum", "max", "min", 0])
@pytest.mark.parametrize("objective", ["sum", "min"])
def test_a_selection_never_waits(objective: Any, start: Any) -> None:
    points = [cloud("random", n, 8, n) for n in (12, 12, 9)]
    distances: tuple[Any, ...] = ("cosine", "euclidean", "sqeuclidean", "angular")
    with Reads() as reads:
        for distance in distances:
            pick_each(points, [5, 12, 9], objective=objective, distance=distance, starts=[start] * 3, route="torch")
        determinant_each([x @ x.T for x in points], [5, 12, 9], route="torch")
    assert reads.count == 0
    with Reads() as reads:
        assert points[0].sum().item() != 0
    assert reads.count == 1


@pytest.mark.parametrize(
    ("strategy", "reads_per_batch"),
    [
        (MIAlignment(0.5), 2),
        (GreedyRepMax(0.3), 2),
        (DivPrune(0.3), 2),
        (CDPruner(0.3), 2),
        (FasterVLM(0.3), 2),
        (TrimTokenator(0.3), 3),  # the input once, and the answers of two stages
    ],
    ids=repr,
)
def test_a_batch_is_checked_at_once(strategy: Any, reads_per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "choose", lambda *args, **kwargs: "torch")
    monkeypatch.setattr(images, "on_host", lambda *args: False)
    monkeypatch.setattr(answers, "on_host", lambda selection: False)
    for size in (1, 2, 7):
        batch = [
            Tokens(
                cloud("random", 10 + seed % 2, 6, seed),
                text=cloud("random", 3, 6, 90 + seed),
                clip_visual=cloud("random", 10 + seed % 2, 4, 30 + seed),
                clip_text=cloud("random", 1, 4, 60 + seed),
                cls_attention=cloud("random", 2, 10 + seed % 2, seed),
            )
            for seed in range(size)
        ]
        with Reads() as reads:
            strategy.select_batch(batch)
        assert reads.count == reads_per_batch
