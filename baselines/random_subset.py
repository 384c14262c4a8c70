"""Control: a random subset. Any method that cannot beat it has not shown anything."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.budget import Keep
from tokenprune.strategy import PruningStrategy, set_keep
from tokenprune.tokens import Selection, Tokens


def random_subset(n: int, k: int, *, seed: int, key: int = 0) -> Int[Tensor, " k"]:
    """k of the numbers 0..n-1, uniformly without replacement, in the order drawn.

    The draw depends on the arguments alone: not on the device, the batch, or torch's global generator.

    Args:
        n: size of the set.
        k: how many to draw, 1 <= k <= n.
        seed: any non-negative int.
        key: tells images apart, so that one seed gives each image its own subset.

    Examples:
        >>> random_subset(5, 5, seed=0).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    state = np.random.SeedSequence([seed, key % 2**64]).generate_state(1, np.uint64)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(state) >> 1))[:k]


@dataclass(frozen=True, repr=False)
class Random(PruningStrategy):
    """Keep a uniformly random subset: the control that every comparison must carry, over several seeds.

    Each image gets its own subset, through `Tokens.key`; one seed gives the same subsets in any batch and order.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        seed: a non-negative int.

    Raises:
        TypeError: when seed is no int.
        ValueError: when seed is negative.

    Examples:
        >>> Random(keep=2, seed=1).select(Tokens(torch.zeros(9, 4))).kept
        2
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "control: a random subset, own draw per image"
    uses = frozenset({"key"})

    keep: Keep
    seed: int = 0

    def __post_init__(self) -> None:
        set_keep(self)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"Random: seed must be an int, got {self.seed!r} of type {type(self.seed).__name__}")
        if self.seed < 0:
            raise ValueError(f"Random: seed must be 0 or more, got {self.seed}")

    def _select(self, tokens: Tokens) -> Selection:
        order = random_subset(tokens.n, self.count(tokens), seed=self.seed, key=tokens.key or 0).to(
            tokens.visual.device
        )
        return Selection(indices=order.sort().values, total=tokens.n, order=order)
