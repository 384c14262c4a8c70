"""Control: a random subset. Any method that cannot beat it has not shown anything."""

from dataclasses import field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.fields import Seed, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import (
    IMAGE_KEY,
)
from tokenprune.core.strategy import Stage
from tokenprune.core.tokens import Tokens


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


@strategy("random")
class Random(Stage):
    """Keep a uniformly random subset: the control that every comparison must carry, over several seeds.

    Each image gets its own subset, through `IMAGE_KEY`; one seed gives the same subsets in any batch and order.

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

    keep: Keep
    seed: Seed = field(default=0)
    needs = (IMAGE_KEY,)

    def choose(self, tokens: Tokens) -> Choice:
        """Draw one subset."""
        order = random_subset(tokens.n, self.count(tokens), seed=self.seed, key=tokens[IMAGE_KEY])
        return Choice.picked(order.to(tokens.visual.device))
