"""LLaVA-1.5 and models like it (`LlavaForConditionalGeneration`)."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.models.adapter import NO_SIGNALS, Adapter
from tokenprune.models.tap import tap, tower_reader
from tokenprune.models.vision import Grid, Vision, image_keys


class LlavaAdapter(Adapter):
    """Adapter for LLaVA-1.5: a ViT, a two-layer projector, a causal language model; 576 tokens per image, raster order.

    `vision_states` are the states that the projector gets. `cls_attention` and `vision_keys` come from the layer whose
    output those states are (the last one, when several layers are concatenated), as VisionZip and FasterVLM read them.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"llava"})
    modality_keys: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    @property
    def signals(self) -> frozenset[str]:
        """`cls_attention` only with a tower that has a CLS token."""
        own = {"vision_states", "vision_keys"} | ({"cls_attention"} if self._has_cls else set())
        return super().signals | own

    @property
    def _has_cls(self) -> bool:
        return getattr(getattr(self.vision_tower, "embeddings", None), "class_embedding", None) is not None

    def encode(self, inputs: Mapping[str, Any], want: Collection[str] = NO_SIGNALS) -> Vision:
        """Run tower and projector once; see `Adapter.encode`."""
        config = self.model.config
        options = {name: inputs[name] for name in self.modality_keys if inputs.get(name) is not None}
        layer = options.get("vision_feature_layer", config.vision_feature_layer)
        layers = [layer] if isinstance(layer, int) else list(layer)
        crop = int(options.get("vision_feature_select_strategy", config.vision_feature_select_strategy) == "default")
        with ExitStack() as stack:
            seen: list[tuple[Tensor | None, Tensor | None]] = []
            if {"cls_attention", "vision_keys"} & set(want):
                module = self.vision_attention[layers[-1] if layers[-1] < 0 else layers[-1] - 1]
                seen = stack.enter_context(tap(module, tower_reader(want, crop)))
            output = self.base.get_image_features(**options, return_dict=True)
        features = list(output.pooler_output)
        rows, keys = seen[0] if seen else (None, None)
        states = None
        if "vision_states" in want:
            states = torch.cat([output.hidden_states[i][:, crop:] for i in layers], dim=-1)
        pixels = options["pixel_values"]
        return Vision(
            features=torch.cat(features),
            counts=tuple(len(image) for image in features),
            grids=tuple(self._grid(pixels, len(image)) for image in features),
            keys=image_keys(pixels) if "key" in want else None,
            cls_attention=None if rows is None else tuple(rows),
            vision_states=None if states is None else tuple(states),
            vision_keys=None if keys is None else tuple(keys),
        )

    def _grid(self, pixels: Tensor, count: int) -> Grid:
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return (rows, columns) if rows * columns == count else None
