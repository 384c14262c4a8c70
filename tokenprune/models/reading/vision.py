"""What the vision side of a model says about a batch of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.core.signals import IMAGE_KEY, Signal

Grid = tuple[int, int] | None

_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio as int64: neighbouring pixels get unrelated weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Vision:
    """Projected tokens and signals of all images of a call. Immutable.

    Per-image entries stand in the order in which the images' placeholders stand in the prompts, row after row.

    Attributes:
        features: float (n, d), projected tokens of all images one after another.
        counts: number of tokens of each image.
        grids: (rows, columns) of each image's raster, or None where the tokens are no raster.
        signals: what else is known, a value for each image; None where an image has none.
        deepstack: float (layers, n, d), what the first decoder layers add to the visual tokens, where they do.
    """

    features: Float[Tensor, "n d"]
    counts: tuple[int, ...]
    grids: tuple[Grid, ...]
    signals: Mapping[Signal, tuple[Any, ...]] = field(default_factory=dict)
    deepstack: Float[Tensor, "layers n d"] | None = None

    def __post_init__(self) -> None:
        if sum(self.counts) != self.features.shape[0] or len(self.grids) != len(self.counts):
            raise ValueError(
                f"Vision: {len(self.counts)} images with {sum(self.counts)} tokens and {len(self.grids)} grids do not "
                f"fit {self.features.shape[0]} rows of features; an adapter must return one row per placeholder"
            )

    @property
    def keys(self) -> tuple[int, ...] | None:
        """`IMAGE_KEY` of each image, when it was wanted."""
        return self.signals.get(IMAGE_KEY)

    def of(self, image: int, device: torch.device, *, attached: bool = False) -> dict[Signal, Any]:
        """What is known of one image, on one device.

        Args:
            image: number of the image.
            device: where tensors go.
            attached: leave them connected to the vision tower, for strategies that make new tokens of them.
        """
        known = {signal: values[image] for signal, values in self.signals.items()}
        plain = {s: v.detach() if isinstance(v, Tensor) and not attached else v for s, v in known.items()}
        return {s: v.to(device) if isinstance(v, Tensor) else v for s, v in plain.items() if v is not None}


def image_keys(pixels: Float[Tensor, "images *shape"]) -> tuple[int, ...]:
    """One 64-bit number per image, made from its pixel values alone.

    The pixels are rounded to bfloat16, so that a batch in float32 and the same batch in bfloat16 give the same keys
    (float16 may not), and their bits are summed as integers with weights that depend on the place in the image: exact
    on every device, in any order of summation. Costs one transfer from the device.

    Args:
        pixels: what the processor hands to the vision tower, images first.

    Examples:
        >>> image_keys(torch.zeros(2, 3, 4, 4)) == image_keys(torch.zeros(1, 3, 4, 4)) * 2
        True
    """
    bits = pixels.detach().to(torch.bfloat16).flatten(1).view(torch.int16).long() & 0xFFFF
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device) * _MULTIPLIER
    weights = (place ^ (place >> 29)) * _MULTIPLIER | 1
    return tuple(((bits + 1) * weights).sum(1).tolist())


def combined_keys(keys: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """One number per image from those of its tiles, which depends on their order.

    Args:
        keys: of all tiles, from `image_keys`.
        counts: tiles of each image.

    Examples:
        >>> combined_keys([5, 7, 9], [1, 2])[0] == 5
        True
        >>> combined_keys([7, 9], [2]) == combined_keys([9, 7], [2])
        False
    """
    found, start = [], 0
    for count in counts:
        total = 0
        for key in keys[start : start + count]:
            total = total * _MULTIPLIER + key
        found.append((total + 2**63) % 2**64 - 2**63)
        start += count
    return tuple(found)
