"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, videos, and positions with a time, a row and a column."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tokenprune.core.signals import IMAGE_KEY, TILES, Signal
from tokenprune.models.families.adapter import NO_SIGNALS, Adapter
from tokenprune.models.families.tiles import IMAGES, VIDEOS, Kind
from tokenprune.models.reading.interleave import in_prompt_order
from tokenprune.models.reading.vision import Vision, combined_keys, image_keys

_GRIDS = {IMAGES: "image_grid_thw", VIDEOS: "video_grid_thw"}


class QwenVLAdapter(Adapter):
    """Adapter for Qwen2-VL and Qwen2.5-VL. `tiles` of a video are its frames (pairs of frames make one).

    Positions have four axes: the first counts columns and is what `generate` counts on, the other three feed the rotary
    embedding. Under "compact" positions an image takes the room of a smaller one: see `models/prompt/places.py`.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"qwen2_vl", "qwen2_5_vl"})
    modality_keys: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
        "mm_token_type_ids",
        "second_per_grid_ts",
    )
    visual_keys: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos")
    sites: ClassVar[frozenset[str]] = frozenset({"projector", "decoder"})
    counting_axes: ClassVar[int] = 1
    reasons: ClassVar[Mapping[str, str]] = {
        "tower": "its merger joins 2 x 2 neighbouring patches, so the tower must keep all of them",
        "cls_attention": "its tower has no CLS token",
    }

    @property
    def vision_tower(self) -> nn.Module:
        """The module that sees the pixels."""
        tower: nn.Module = self.base.visual
        return tower

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Ids of the placeholders of images and videos."""
        return frozenset({int(self.model.config.image_token_id), int(self.model.config.video_token_id)})

    known: ClassVar[frozenset[Signal]] = Adapter.known | {TILES}

    def encode(self, inputs: Mapping[str, Any], want: Collection[Signal] = NO_SIGNALS) -> Vision:
        """Run the tower once for images and once for videos; see `Adapter.encode`."""
        parts = [
            (int(getattr(self.model.config, kind.token)), self._encode(kind, inputs, want))
            for kind in (IMAGES, VIDEOS)
            if inputs.get(kind.argument) is not None
        ]
        return in_prompt_order(parts, inputs.get("input_ids"))

    def _encode(self, kind: Kind, inputs: Mapping[str, Any], want: Collection[Signal]) -> Vision:
        pixels, thw = inputs[kind.argument], inputs[_GRIDS[kind]]
        output = getattr(self.base, kind.method)(pixels, thw, return_dict=True)
        merge = int(self.model.config.vision_config.spatial_merge_size)
        sizes = [(t, h // merge, w // merge) for t, h, w in thw.tolist()]
        patches = [t * h * w for t, h, w in thw.tolist()]
        deep = getattr(output, "deepstack_features", None)
        signals: dict[Signal, tuple[Any, ...]] = {
            TILES: tuple(None if t == 1 else torch.arange(t).repeat_interleave(h * w) for t, h, w in sizes)
        }
        if IMAGE_KEY in want:
            signals[IMAGE_KEY] = combined_keys(image_keys(pixels), patches)
        return Vision(
            features=torch.cat(list(output.pooler_output)),
            counts=tuple(t * h * w for t, h, w in sizes),
            grids=tuple((h, w) if t == 1 else None for t, h, w in sizes),
            signals=signals,
            # One tensor per layer, or, in later releases, one per layer and image.
            deepstack=None
            if deep is None
            else torch.stack([layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in deep]),
        )

    def positions(
        self, inputs: Mapping[str, Any], default: Int[Tensor, "b l"], vision: Vision | None = None
    ) -> Int[Tensor, "axes b l"]:
        """Four axes: columns, time, row, column; the caller's when there are any."""
        given = inputs.get("position_ids")
        if given is not None:
            if given.ndim != 3 or given.shape[0] not in (3, 4) or given.shape[1:] != default.shape:
                raise ValueError(
                    f"prune: position_ids are {tuple(given.shape)} but the prompts are {tuple(default.shape)}; give "
                    "(3 or 4, prompts, columns), or leave them out"
                )
            placed = given.to(default.device)
            return placed if len(placed) == 4 else torch.cat([default[None], placed])
        if vision is None:
            return default.expand(4, -1, -1)
        if inputs.get("mm_token_type_ids") is None:
            raise ValueError(
                "prune: mm_token_type_ids and grids are missing, without which there are no positions of visual "
                "tokens; pass everything that the processor returned"
            )
        known = inspect.signature(self.base.get_rope_index).parameters
        options = {name: inputs[name] for name in known if inputs.get(name) is not None}
        rotary = self.base.get_rope_index(**options)[0]
        return torch.cat([default[None], rotary.to(default)])


class Qwen3VLAdapter(QwenVLAdapter):
    """Adapter for Qwen3-VL: the first decoder layers add features of earlier tower layers to the visual tokens.

    These are cut with the tokens. A merged token gets those of the token whose place it takes. Stages inside the
    decoder act behind those layers.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"qwen3_vl"})
    reasons: ClassVar[Mapping[str, str]] = {
        **QwenVLAdapter.reasons,
        "early": "its first decoder layers add features to every visual token",
    }

    @property
    def first_layer(self) -> int:
        """Behind the layers that add features."""
        return len(self.model.config.vision_config.deepstack_visual_indexes)
