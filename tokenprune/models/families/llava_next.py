"""LLaVA-NeXT and LLaVA-OneVision: a base tile, a grid of tiles cut to the image, a newline token behind each row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tokenprune.core.signals import TILE_GRID, Signal
from tokenprune.models.families.tiles import (
    IMAGES,
    NEWLINE,
    NO_CLS_ROW,
    NO_RASTER,
    VIDEOS,
    Arrangement,
    Kind,
    TiledAdapter,
)

_GRID = "its tokens are cut to the image and joined row by row before the language model"


class LlavaNextAdapter(TiledAdapter):
    """Adapter for LLaVA-NeXT (1.6): tile 0 is the whole image, then the unpadded grid, rows end in a newline token.

    Where tokens of tiles stand follows from the model's own packing, which is run on the signals as on the features.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"llava_next"})
    images_apart: ClassVar[bool] = True
    reasons: ClassVar[Mapping[str, str]] = {
        "tower": _GRID,
        "grid": NO_RASTER,
        "project": "newline tokens come from no projector",
        "vision_cls": NO_CLS_ROW,
        "video": "the family takes images only",
    }

    known: ClassVar[frozenset[Signal]] = TiledAdapter.known | {TILE_GRID}

    def arrangement(self, kind: Kind, inputs: Mapping[str, Any], passes: int, places: int) -> Arrangement:
        """See `TiledAdapter.arrangement`."""
        config = self.model.config
        sizes = [(int(height), int(width)) for height, width in torch.as_tensor(inputs["image_sizes"]).tolist()]
        side = config.vision_config.image_size
        cut = self._cut(inputs, len(sizes))
        best = [select_best_resolution(size, config.image_grid_pinpoints) for size in sizes]
        shapes = [(h // side, w // side) if cut[i] else None for i, (h, w) in enumerate(best)]
        pieces = tuple(1 if shape is None else 1 + shape[0] * shape[1] for shape in shapes)

        def pack(values: Tensor, newline: float = 0.0) -> list[Tensor]:
            fill = values.new_full(values.shape[-1:], newline)
            return self._pack(list(values.split(pieces)), torch.tensor(sizes), fill, inputs)

        # The coordinates of each tile among the tiles, packed like features.
        whole = torch.tensor([[-1.0, -1.0]])
        parts = [
            whole if s is None else torch.cat([whole, torch.cartesian_prod(*map(torch.arange, s))]) for s in shapes
        ]
        packed = pack(torch.cat(parts)[:, None].expand(-1, places, -1), -2.0)
        numbers = []
        for shape, place in zip(shapes, packed, strict=True):
            row, column = place.round().long().unbind(1)
            numbers.append(torch.where(row < 0, -1 - row, row * (shape or (1, 1))[1] + column + 1))
            numbers[-1][row == -2] = NEWLINE
        return Arrangement(
            pieces=pieces,
            numbers=tuple(numbers),
            place=pack,
            grids=(None,) * len(sizes),
            tile_grids=tuple(shapes),
        )

    def _cut(self, inputs: Mapping[str, Any], images: int) -> list[bool]:
        """Whether each image is cut into tiles."""
        return [True] * images

    def _pack(self, rows: list[Tensor], sizes: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
        packed: list[Tensor] = self.base.pack_image_features(
            rows, sizes, vision_feature_select_strategy="full", image_newline=newline
        )[0]
        return packed


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """Adapter for LLaVA-OneVision: as LLaVA-NeXT with a SigLIP tower; prompts with several images cut none of them.

    Above its tile limit the model shrinks the grid by interpolation: signals are interpolated with it, and a token
    counts for the tile that most of it comes from. A video is a row of pooled frames with one newline token at its end;
    `tiles` are its frames.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"llava_onevision"})
    images_apart: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = (IMAGES, VIDEOS)
    modality_keys: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_values_videos",
        "image_sizes",
        "image_sizes_videos",
        "batch_num_images",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "vision_aspect_ratio",
    )
    visual_keys: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos")
    reasons: ClassVar[Mapping[str, str]] = {
        "tower": _GRID,
        "grid": NO_RASTER,
        "project": "newline tokens come from no projector",
        "cls_attention": "its SigLIP tower has no CLS token",
    }

    known: ClassVar[frozenset[Signal]] = LlavaNextAdapter.known - {TILE_GRID}

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Ids of the placeholders of images and videos."""
        return frozenset({int(self.model.config.image_token_id), int(self.model.config.video_token_id)})

    def arrangement(self, kind: Kind, inputs: Mapping[str, Any], passes: int, places: int) -> Arrangement:
        """See `TiledAdapter.arrangement`."""
        if kind is IMAGES:
            return super().arrangement(kind, inputs, passes, places)
        videos, frames = inputs[kind.argument].shape[:2]

        def pool(values: Tensor) -> list[Tensor]:
            pooled = self.base.apply_pooling(values).unflatten(0, (videos, frames)).flatten(1, 2)
            return list(torch.cat([pooled, pooled.new_zeros(videos, 1, pooled.shape[-1])], dim=1))

        tokens = (pool(torch.zeros(passes, places, 1))[0].shape[0] - 1) // frames
        number = torch.cat([torch.arange(frames).repeat_interleave(tokens), torch.tensor([NEWLINE])])
        return Arrangement(
            pieces=(frames,) * videos,
            numbers=(number,) * videos,
            place=pool,
            grids=(None,) * videos,
            tile_grids=(None,) * videos,
        )

    def completed(self, features: list[Tensor], counts: tuple[int, ...]) -> list[Tensor]:
        """Early releases add the newline token of a video later."""
        if len(features) != len(counts) or all(len(image) == n for image, n in zip(features, counts, strict=True)):
            return features
        newline = self.base.image_newline[None].to(features[0])
        return [torch.cat([image, newline]) for image in features]

    def _cut(self, inputs: Mapping[str, Any], images: int) -> list[bool]:
        several = inputs.get("batch_num_images")
        if several is None:
            return [True] * images
        return [number == 1 for number in several.tolist() for _ in range(number)]

    def _pack(self, rows: list[Tensor], sizes: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
        ratio = inputs.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        packed: list[Tensor] = self.base.pack_image_features(
            rows, sizes, image_newline=newline, vision_aspect_ratio=ratio
        )[0]
        return packed
