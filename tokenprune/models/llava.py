"""LLaVA-1.5 and models like it (`LlavaForConditionalGeneration`)."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenprune.models.adapter import NO_SIGNALS, Adapter, TowerUse
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.tap import Reader, tap, tower_reader
from tokenprune.models.vision import Grid, Vision, image_keys


class LlavaAdapter(Adapter):
    """Adapter for LLaVA-1.5: a ViT, a two-layer projector, a causal language model; 576 tokens per image, raster order.

    `vision_states` are the states that the projector gets. `cls_attention` and `vision_keys` come from the layer whose
    output those states are (the last of them, when several layers are concatenated).
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"llava"})
    reasons: ClassVar[Mapping[str, str]] = {"video": "the family takes images only"}
    sites: ClassVar[frozenset[str]] = frozenset({"tower", "projector", "decoder"})
    images_apart: ClassVar[bool] = True
    modality_keys: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    @property
    def signals(self) -> frozenset[str]:
        """Those of the CLS token only with a tower that has one."""
        cls = getattr(getattr(self.vision_tower, "embeddings", None), "class_embedding", None)
        of_cls = {"cls_attention", "cls_attention_first", "cls_attention_last", "vision_cls", "vision_last_cls"}
        of_cls = of_cls if cls is not None else set()
        return super().signals | {"vision_states", "vision_keys", "vision_last_keys", "project"} | of_cls

    def encode(self, inputs: Mapping[str, Any], want: Collection[str] = NO_SIGNALS) -> Vision:
        """Run tower and projector once; see `Adapter.encode`."""
        options = {name: inputs[name] for name in self.modality_keys if inputs.get(name) is not None}
        layers, crop = self._features_of(inputs)
        want = self.signals & set(want)
        with ExitStack() as stack:
            seen = [stack.enter_context(tap(*reading)) for reading in self._readings(layers[-1], want, crop)]
            output = self.base.get_image_features(**options, return_dict=True)
        features = list(output.pooler_output)
        signals: dict[str, Any] = {name: tuple(rows) for calls in seen for name, rows in calls[0].items()}
        if want & {"vision_states", "vision_cls"}:
            states = torch.cat([output.hidden_states[i] for i in layers], dim=-1)
            signals["vision_states"] = tuple(states[:, crop:])
            signals["vision_cls"] = tuple(states[:, :1]) if crop else None
        pixels = options["pixel_values"]
        return Vision(
            features=torch.cat(features),
            counts=tuple(len(image) for image in features),
            grids=tuple(self._grid(pixels, len(image)) for image in features),
            keys=image_keys(pixels) if "key" in want else None,
            project=self.base.multi_modal_projector if "project" in want else None,
            **signals,
        )

    def tower_use(self, inputs: Mapping[str, Any]) -> TowerUse:
        """The layers before the chosen feature layer; see `Adapter.tower_use`."""
        chosen, crop = self._features_of(inputs)
        if len(chosen) > 1:
            raise UnsupportedError(
                f"prune: vision_feature_layer={chosen} puts states of several layers side by side, which have "
                "different numbers of tokens when the vision tower merges them; choose one layer"
            )
        layers = list(self.vision_tower.encoder.layers)  # type: ignore[union-attr,arg-type]
        used = layers[: chosen[0]] if chosen[0] >= 0 else layers[: len(layers) + 1 + chosen[0]]
        prefix = int(getattr(self.vision_tower.embeddings, "class_embedding", None) is not None)
        pixels, patch = inputs.get("pixel_values"), self.model.config.vision_config.patch_size
        raster = None if pixels is None else (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        return TowerUse(
            layers=tuple(used),
            prefix=prefix,
            crop=crop,
            grid=raster if prefix == crop else None,
        )

    def _features_of(self, inputs: Mapping[str, Any]) -> tuple[list[int], int]:
        """The layers whose states the projector gets, and how many leading rows it does not get."""
        config = self.model.config
        layer, select = (
            default if (given := inputs.get(name)) is None else given
            for name, default in (
                ("vision_feature_layer", config.vision_feature_layer),
                ("vision_feature_select_strategy", config.vision_feature_select_strategy),
            )
        )
        return [layer] if isinstance(layer, int) else list(layer), int(select == "default")

    def _readings(self, layer: int, want: Collection[str], crop: int) -> list[tuple[nn.Module, Reader]]:
        """What to read at which attention module: states of layer -2 leave module -2, those of layer 1 module 0."""
        modules = self.vision_attention
        wanted: dict[int, set[str]] = {}
        for place, names in (
            (layer if layer < 0 else layer - 1, {"cls_attention", "vision_keys"}),
            (-1, {"vision_last_keys", "vision_last_cls", "cls_attention_last"}),
            (0, {"cls_attention_first"}),
        ):
            if names & set(want):
                wanted.setdefault(place % len(modules), set()).update(names & set(want))
        return [(modules[place], tower_reader(names, crop)) for place, names in wanted.items()]

    def _grid(self, pixels: Tensor, count: int) -> Grid:
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return (rows, columns) if rows * columns == count else None
