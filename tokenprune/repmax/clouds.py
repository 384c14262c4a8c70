"""Synthetic token clouds: stand-ins for the visual tokens of an image where no model is at hand."""

from typing import Literal, get_args

import numpy as np

from tokenprune.core.fields import check_choice
from tokenprune.repmax.problem.distances import Array

Cloud = Literal["clusters", "aniso", "spatial", "outliers", "dups", "noisy", "isotropic"]


def token_cloud(kind: Cloud, n: int, d: int, *, seed: int = 0) -> Array:
    """(n, d) synthetic tokens, float64 holding float32 values. None of them is a claim about real tokens.

    Args:
        kind: "clusters": 20 clusters of unequal size, noise whose spectrum decays like 1/i; "aniso": one Gaussian with
            that spectrum around a common offset; "spatial": a smooth random field on the square raster; "outliers":
            clusters plus 5 % of tokens with three times the norm; "dups": clusters of which a quarter are exact
            copies; "noisy": clusters with isotropic noise; "isotropic": a plain Gaussian, the hard case for cosine.
        n: number of tokens.
        d: their width.
        seed: of the random generator.

    Examples:
        >>> token_cloud("clusters", 6, 4).shape
        (6, 4)
    """
    check_choice("token_cloud", "kind", kind, get_args(Cloud))
    rng = np.random.default_rng([seed, n, d, get_args(Cloud).index(kind)])
    if kind == "isotropic":
        cloud = rng.normal(size=(n, d))
    elif kind == "aniso":
        cloud = 1.5 * rng.normal(size=d) / np.sqrt(d) + _decaying(rng, n, d)
    elif kind == "spatial":
        cloud = _field(rng, n, d)
    else:
        noise = rng.normal(size=(n, d)) / np.sqrt(d) if kind == "noisy" else _decaying(rng, n, d)
        cloud = _centres(rng, n, d) + 0.6 * noise
    if kind == "outliers":
        cloud[rng.permutation(n)[: max(1, n // 20)]] *= 3.0
    if kind == "dups":
        copies = rng.permutation(n)[: n // 4]
        cloud[copies] = cloud[rng.integers(n, size=copies.size)]
    return cloud.astype(np.float32).astype(np.float64)


def _decaying(rng: np.random.Generator, n: int, d: int) -> Array:
    """Gaussian rows of expected squared length 1 whose variances decay like 1/i^2 along random axes."""
    spread = 1.0 / np.arange(1, d + 1)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0] if d <= 256 else np.eye(d)
    return np.asarray((rng.normal(size=(n, d)) * (spread / np.linalg.norm(spread))) @ axes)


def _centres(rng: np.random.Generator, n: int, d: int) -> Array:
    weights = rng.dirichlet(np.full(20, 1.0))
    centres = rng.normal(size=(20, d)) / np.sqrt(d) + 0.7 * rng.normal(size=d) / np.sqrt(d)
    return np.asarray(centres[rng.choice(20, size=n, p=weights)])


def _field(rng: np.random.Generator, n: int, d: int) -> Array:
    side = int(np.ceil(np.sqrt(n)))
    white = np.fft.rfft2(rng.normal(size=(d, side, side)))
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    smooth = np.fft.irfft2(white / (0.02 + rows**2 + columns**2), s=(side, side))
    flat = smooth.reshape(d, -1).T[:n]
    return np.asarray(flat / flat.std() / np.sqrt(d) + 0.5 * rng.normal(size=d) / np.sqrt(d))
