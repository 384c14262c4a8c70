"""LLaVA-1.5 and models like it (`LlavaForConditionalGeneration`)."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenprune.core.signals import IMAGE_KEY, PROJECT, FromProjector, FromTower, Signal
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import NO_SIGNALS, Adapter, TowerUse
from tokenprune.models.reading.attended import read_rows, tower_reader
from tokenprune.models.reading.tap import Reader, tap
from tokenprune.models.reading.vision import Grid, Vision, image_keys


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

    known: ClassVar[frozenset[Signal]] = Adapter.known | {PROJECT}

    @property
    def has_cls(self) -> bool:
        """True when the tower has a CLS token."""
        embeddings = getattr(self.vision_tower, "embeddings", None)
        return any(getattr(embeddings, name, None) is not None for name in ("class_embedding", "cls_token"))

    def reads(self, signal: Signal) -> bool:
        """Those of the CLS token only with a tower that has one."""
        source = signal.source
        return isinstance(source, FromTower | FromProjector) and (self.has_cls or not source.cls)

    def why_not(self, signal: Signal) -> str | None:
        """Also when the tower has fewer layers than the signal names."""
        reason, source = super().why_not(signal), signal.source
        if reason is None and isinstance(source, FromTower) and source.layer != "used":
            count = len(self.vision_attention)
            return None if -count <= source.layer < count else f", because its vision tower has {count} layers"
        return reason

    def encode(self, inputs: Mapping[str, Any], want: Collection[Signal] = NO_SIGNALS) -> Vision:
        """Run tower and projector once; see `Adapter.encode`."""
        options = {name: inputs[name] for name in self.modality_keys if inputs.get(name) is not None}
        layers, crop = self._features_of(inputs)
        want = [signal for signal in want if self.why_not(signal) is None]
        with ExitStack() as stack:
            seen = [stack.enter_context(tap(*reading)) for reading in self._readings(layers[-1], want, crop)]
            output = self.base.get_image_features(**options, return_dict=True)
        features, pixels = list(output.pooler_output), options["pixel_values"]
        signals = {signal: tuple(values) for calls in seen for signal, values in calls[0]().items()}
        rows = [signal for signal in want if isinstance(signal.source, FromProjector)]
        if rows:
            states = torch.cat([output.hidden_states[i] for i in layers], dim=-1)  # (b, p, c)
            signals |= read_rows(rows, states, crop)
        if IMAGE_KEY in want:
            signals[IMAGE_KEY] = image_keys(pixels)
        if PROJECT in want:
            signals[PROJECT] = (self.base.multi_modal_projector,) * len(features)
        return Vision(
            features=torch.cat(features),
            counts=tuple(len(image) for image in features),
            grids=tuple(self._grid(pixels, len(image)) for image in features),
            signals=signals,
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

    def _readings(self, layer: int, want: Collection[Signal], crop: int) -> list[tuple[nn.Module, Reader]]:
        """What to read at which attention module: states of layer -2 leave module -2, those of layer 1 module 0."""
        modules = self.vision_attention
        used = layer if layer < 0 else layer - 1
        wanted: dict[int, list[Signal]] = {}
        for signal in want:
            if isinstance(signal.source, FromTower):
                place = used if signal.source.layer == "used" else signal.source.layer
                if not -len(modules) <= place < len(modules):
                    raise UnsupportedError(
                        f"prune: {signal} is read at layer {place} of the vision tower, which has {len(modules)}"
                    )
                wanted.setdefault(place % len(modules), []).append(signal)
        return [(modules[place], tower_reader(signals, crop)) for place, signals in wanted.items()]

    def _grid(self, pixels: Tensor, count: int) -> Grid:
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return (rows, columns) if rows * columns == count else None
