"""Vision features, computed once per picture and shared by every cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenprune.models.reading.vision import Vision

DEFAULT_CACHE_BYTES = 4 * 2**30


def split_vision(vision: Vision) -> list[Vision]:
    """One `Vision` per image."""
    parts = []
    # clone: a view would keep the whole batch alive in the cache
    for i, features in enumerate(vision.features.split(list(vision.counts))):
        own: dict[str, Any] = {"features": features.clone()}
        if vision.deepstack is not None:
            own["deepstack"] = vision.deepstack.split(list(vision.counts), dim=1)[i].clone()
        own["counts"], own["grids"] = (vision.counts[i],), (vision.grids[i],)
        own["signals"] = {signal: (values[i],) for signal, values in vision.signals.items()}
        parts.append(Vision(**own))
    return parts


def join_vision(parts: Sequence[Vision]) -> Vision:
    """The images of several `Vision` of one model as one, in order."""
    whole: dict[str, Any] = {"features": torch.cat([part.features for part in parts])}
    added = [part.deepstack for part in parts if part.deepstack is not None]
    if added:
        whole["deepstack"] = torch.cat(added, dim=1)
    whole["counts"] = tuple(count for part in parts for count in part.counts)
    whole["grids"] = tuple(grid for part in parts for grid in part.grids)
    known = parts[0].signals
    whole["signals"] = {signal: tuple(v for part in parts for v in part.signals[signal]) for signal in known}
    return Vision(**whole)


def vision_bytes(vision: Vision) -> int:
    """Memory that the tensors of a `Vision` take."""
    signals = [entry for values in vision.signals.values() for entry in values]
    whole = [vision.features] if vision.deepstack is None else [vision.features, vision.deepstack]
    tensors = [*whole, *(entry for entry in signals if isinstance(entry, torch.Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
