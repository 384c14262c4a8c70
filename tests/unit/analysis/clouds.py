"""Small images with known geometry, and the bundled scenes once per session."""

from functools import cache

import torch

from tokenprune import Tokens
from tokenprune.analysis import AnalysedImage, bundled_images
from tokenprune.core.signals import signal_named
from tokenprune.evaluate.loading import LoadedModel, load


def random_image(
    seed: int = 0, n: int = 24, m: int = 5, d: int = 8, *, name: str = "a", others: int = 2
) -> AnalysedImage:
    """Gaussian tokens, texts of different questions, and two annotated objects."""
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(n, d, generator=generator) * (1 + torch.rand(n, 1, generator=generator))
    question = torch.arange(m) >= m // 2
    tokens = [
        Tokens(visual, text=torch.randn(m, d, generator=generator), question=question, grid=(4, n // 4))
        for _ in range(1 + others)
    ]
    return AnalysedImage(id=name, tokens=tokens[0], others=tuple(tokens[1:]), objects=((0, 1, 2), (7, 8)))


@cache
def bundled_model() -> LoadedModel:
    return load(device="cpu")


@cache
def scenes(count: int = 6) -> tuple[AnalysedImage, ...]:
    return tuple(bundled_images(bundled_model(), count, swap=True, want=(signal_named("cls_attention"),)))
