"""What the vision side of a model says about a batch of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Grid = tuple[int, int] | None

SIGNALS = (
    "cls_attention",
    "cls_attention_first",
    "vision_states",
    "vision_cls",
    "vision_keys",
    "vision_last_keys",
    "vision_last_cls",
    "cls_attention_last",
)
"""Fields of `Tokens` that hold a tensor from the vision tower."""

_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio as int64: neighbouring pixels get unrelated weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Vision:
    """Projected tokens and signals of all images of a call. Immutable.

    Per-image entries stand in the order in which the images' placeholders stand in the prompts, row after row.

    Attributes:
        features: float (n, d), projected tokens of all images one after another.
        counts: number of tokens of each image.
        grids: (rows, columns) of each image's raster, or None where the tokens are no raster.
        keys: `Tokens.key` of each image, when asked for.
        tiles: `Tokens.tiles` of each image that has several tiles or newline tokens, None for the others.
        tile_grids: `Tokens.tile_grid` of each image, or None.
        deepstack: float (layers, n, d), what the first decoder layers add to the visual tokens, where they do.
        cls_attention, cls_attention_first, cls_attention_last: the field of `Tokens` of that name for each image, when
            asked for.
        vision_states, vision_cls, vision_keys, vision_last_keys, vision_last_cls: likewise.
        clip_visual, tower_size: the same; filled by `see`, not by adapters.
        project: the projector, when asked for.
    """

    features: Float[Tensor, "n d"]
    counts: tuple[int, ...]
    grids: tuple[Grid, ...]
    keys: tuple[int, ...] | None = None
    tiles: tuple[Int[Tensor, " _"] | None, ...] | None = None
    tile_grids: tuple[Grid, ...] | None = None
    deepstack: Float[Tensor, "layers n d"] | None = None
    cls_attention: tuple[Float[Tensor, "h _"], ...] | None = None
    cls_attention_first: tuple[Float[Tensor, "h _"], ...] | None = None
    vision_states: tuple[Float[Tensor, "_ c"], ...] | None = None
    vision_cls: tuple[Float[Tensor, "1 c"], ...] | None = None
    vision_keys: tuple[Float[Tensor, "_ e"], ...] | None = None
    vision_last_keys: tuple[Float[Tensor, "_ f"], ...] | None = None
    vision_last_cls: tuple[Float[Tensor, "2 f"], ...] | None = None
    cls_attention_last: tuple[Float[Tensor, "h _"], ...] | None = None
    clip_visual: tuple[Float[Tensor, "_ p"], ...] | None = None
    tower_size: tuple[Float[Tensor, "1 _"], ...] | None = None
    project: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if sum(self.counts) != self.features.shape[0] or len(self.grids) != len(self.counts):
            raise ValueError(
                f"Vision: {len(self.counts)} images with {sum(self.counts)} tokens and {len(self.grids)} grids do not "
                f"fit {self.features.shape[0]} rows of features; an adapter must return one row per placeholder"
            )

    def of(self, image: int, device: torch.device, *, attached: bool = False) -> dict[str, Any]:
        """The fields of `Tokens` that these signals fill for one image, on one device.

        Args:
            image: number of the image.
            device: where the fields go.
            attached: leave them connected to the vision tower, for strategies that make new tokens of them.
        """
        fields: dict[str, Any] = {"grid": self.grids[image], "project": self.project}
        if self.tiles is not None and (tiles := self.tiles[image]) is not None:
            fields["tiles"] = tiles.to(device)
        if self.tile_grids is not None:
            fields["tile_grid"] = self.tile_grids[image]
        if self.keys is not None:
            fields["key"] = self.keys[image]
        for name in (*SIGNALS, "clip_visual", "tower_size"):
            values = getattr(self, name)
            if values is not None:
                value = values[image] if attached else values[image].detach()
                fields[name] = value.to(device)
        return fields


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
