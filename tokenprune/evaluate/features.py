"""Vision features, computed once per picture and shared by every cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from tokenprune.models.vision import Vision

DEFAULT_CACHE_BYTES = 4 * 2**30


def split_vision(vision: Vision) -> list[Vision]:
    """One `Vision` per image."""
    parts = []
    # clone: a view would keep the whole batch alive in the cache
    for i, features in enumerate(vision.features.split(list(vision.counts))):
        own: dict[str, Any] = {"features": features.clone()}
        if vision.deepstack is not None:
            own["deepstack"] = vision.deepstack.split(list(vision.counts), dim=1)[i].clone()
        for name, value in _other_fields(vision).items():
            own[name] = (value[i],) if isinstance(value, tuple) else value
        parts.append(Vision(**own))
    return parts


def join_vision(parts: Sequence[Vision]) -> Vision:
    """The images of several `Vision` of one model as one, in order."""
    whole: dict[str, Any] = {"features": torch.cat([part.features for part in parts])}
    added = [part.deepstack for part in parts if part.deepstack is not None]
    if added:
        whole["deepstack"] = torch.cat(added, dim=1)
    for name, value in _other_fields(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        whole[name] = tuple(entry for entries in values for entry in entries) if isinstance(value, tuple) else value
    return Vision(**whole)


def vision_bytes(vision: Vision) -> int:
    """Memory that the tensors of a `Vision` take."""
    signals = [entry for value in _other_fields(vision).values() if isinstance(value, tuple) for entry in value]
    whole = [vision.features] if vision.deepstack is None else [vision.features, vision.deepstack]
    tensors = [*whole, *(entry for entry in signals if isinstance(entry, torch.Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _other_fields(vision: Vision) -> dict[str, Any]:
    """All fields but those with a row per token: tuples have one entry per image, others belong to the model."""
    names = [field.name for field in fields(vision) if field.name not in ("features", "deepstack")]
    return {name: getattr(vision, name) for name in names}


@dataclass
class FeatureCache:
    """Features by picture, up to a limit; pictures beyond it are encoded again in every cell.

    Nothing is evicted: cells walk through all pictures in one order, where dropping the oldest entry would make every
    look-up miss.

    Args:
        limit: bytes to hold at most.
    """

    limit: int = DEFAULT_CACHE_BYTES
    used: int = 0
    encoded_again: int = 0
    _entries: dict[str, Vision] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def get(self, names: Sequence[str], encode: Callable[[list[int]], Vision]) -> Vision:
        """Features of some pictures, in order.

        Args:
            names: one name (digest) per picture; repeats are fine.
            encode: makes the features of the pictures at the given places of `names`, in that order.
        """
        missing = [i for i, name in enumerate(names) if name not in self._entries and name not in names[:i]]
        found: dict[str, Vision] = {name: self._entries[name] for name in names if name in self._entries}
        if missing:
            for place, part in zip(missing, split_vision(encode(missing)), strict=True):
                found[names[place]] = part
                self.encoded_again += names[place] in self._seen
                self._keep(names[place], part)
        return join_vision([found[name] for name in names])

    def _keep(self, name: str, part: Vision) -> None:
        self._seen.add(name)
        size = vision_bytes(part)
        if self.used + size <= self.limit:
            self._entries[name] = part
            self.used += size


def take_images(inputs: Mapping[str, Any], keys: Sequence[str], images: int, places: Sequence[int]) -> dict[str, Any]:
    """The vision arguments of some images out of a batch's.

    Args:
        inputs: what the processor made of the batch.
        keys: names of the vision arguments; tensors among them have one entry per image.
        images: number of images in the batch.
        places: which images.

    Raises:
        ValueError: when a tensor does not have one entry per image.
    """
    taken: dict[str, Any] = {}
    for key in keys:
        value = inputs.get(key)
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            if value.shape[0] != images:
                raise ValueError(
                    f"take_images: {key} has {value.shape[0]} entries for {images} images; it must have one each"
                )
            value = value[list(places)]
        taken[key] = value
    return taken
