"""The record: what was pruned, where, and how long choosing took."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.core.places import InDecoder, Positions
from tokenprune.core.selection import Selection, StageCount
from tokenprune.core.strategy import PruningStrategy
from tokenprune.models.plan import Site, site_of
from tokenprune.models.prompt.dense import Prompt
from tokenprune.models.prompt.labels import labels_at

CallKind = Literal["generate", "forward"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRecord:
    """What happened to one image in one call.

    Attributes:
        call: number of the call in its context, from 0.
        prompt: row of the batch.
        image: number of the image within its prompt.
        tokens_in: visual tokens that came.
        tokens_kept: tokens of the image that entered the language model, or that the last stage inside the decoder
            left; 0 where a stage withdraws them all.
        indices: int64 (tokens_kept,) on the CPU, original indices in the order in which they entered.
        requested: tokens asked for; None when the method finds the number itself; may exceed `tokens_in`.
        merged: True when kept tokens carry new features.
        stages: one entry per stage of a pipeline.
        site: where tokens were dropped.
        positions: position policy that was used.
        select_seconds: seconds that the call spent on choosing, for *all* its images together.
        layer: for the site "decoder", the layer from which on only `indices` are left.
        layer_tokens: for the site "decoder", the number of this image's tokens that enter each decoder layer, those
            that were made on the way included.
        frozen: True when the selection is that of an earlier turn, kept by `turns="freeze"`.
        extra_tokens: tokens made inside the decoder that are left beside `indices`.
        sizes: for strategies inside the vision tower, how many patches each of `indices` stands for.
        gradient: whether a gradient flows back through the tokens that the strategy made; None where it made none, and
            in calls that record no gradient. Through tokens that are only kept it always flows, through the choice of
            tokens never.
    """

    call: int
    prompt: int
    image: int
    tokens_in: int
    tokens_kept: int
    indices: Int[Tensor, " k"] = field(repr=False)
    requested: int | None
    merged: bool
    stages: tuple[StageCount, ...]
    site: Site
    positions: Positions
    select_seconds: float
    layer: int | None = None
    layer_tokens: tuple[int, ...] = ()
    frozen: bool = False
    extra_tokens: int = 0
    sizes: tuple[int, ...] = ()
    gradient: bool | None = None

    @property
    def layer_average(self) -> float:
        """Mean over decoder layers of the number of tokens that enter them."""
        return sum(self.layer_tokens) / len(self.layer_tokens) if self.layer_tokens else float(self.tokens_kept)

    @property
    def row(self) -> int:
        """The same as `prompt`."""
        return self.prompt

    @property
    def kept_share(self) -> float:
        """`tokens_kept / tokens_in`."""
        return self.tokens_kept / self.tokens_in

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings and lists."""
        names = ("call", "prompt", "image", "tokens_in", "tokens_kept", "requested", "merged", "site", "positions")
        return {
            **{name: getattr(self, name) for name in names},
            "indices": self.indices.tolist(),
            "stages": [asdict(stage) for stage in self.stages],
            "select_seconds": self.select_seconds,
            "layer": self.layer,
            "layer_tokens": list(self.layer_tokens),
            "sizes": list(self.sizes),
            "layer_average": self.layer_average,
            "frozen": self.frozen,
            "extra_tokens": self.extra_tokens,
            "gradient": self.gradient,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class CallRecord:
    """One call of the model.

    Attributes:
        kind: "generate" or "forward".
        prompts: rows of the batch.
        columns_in: length of the padded dense prompt.
        columns_kept: length of the padded pruned prompt (behind the last stage), that of a forward's logits.
        columns: int64 (prompts, columns_kept) on the CPU: dense column of each slot, -1 on padding, -2 for a token made
            inside the decoder; None for a call without images, which went to the model unchanged.
        images: its images.
        select_seconds: seconds spent on choosing.
        cached: leading columns that stood in a cache from an earlier turn, and were not computed again.
    """

    kind: CallKind
    prompts: int
    columns_in: int
    columns_kept: int
    columns: Int[Tensor, "b k"] | None = field(repr=False)
    images: tuple[ImageRecord, ...] = field(repr=False)
    select_seconds: float
    cached: int = 0

    def cut_labels(self, labels: Int[Tensor, "b l"]) -> Int[Tensor, "b k"]:
        """Labels of the prompts for the logits of this call: those of the columns that are left, -100 elsewhere.

        As in the model's own loss, the first token of each row, which nothing predicts, gets -100. For metrics, and for
        losses of your own.

        Args:
            labels: int64 (prompts, columns_in), as for the model.

        Raises:
            ValueError: when the labels are not those of this call's prompts.
        """
        if labels.shape != (self.prompts, self.columns_in):
            raise ValueError(
                f"cut_labels: labels must be (prompts, columns) = {(self.prompts, self.columns_in)}, the shape of the "
                f"prompts of this call, got {tuple(labels.shape)}; take the record of the call that they belong to"
            )
        return labels if self.columns is None else labels_at(labels, self.columns.to(labels.device))


def _gradient(kind: CallKind, selection: Selection) -> bool | None:
    made = [tensor for tensor in (selection.features, selection.extra) if tensor is not None and tensor.numel()]
    if not made or kind == "generate" or not torch.is_grad_enabled():
        return None
    return all(tensor.requires_grad for tensor in made)


class Record:
    """What a `prune` context did; it grows with every call of the model.

    Indices are copied to the CPU, a few hundred int64 per image; nothing else of the call is held. For very long runs
    open one context per batch.

    Attributes:
        strategy: what chose.
        site: where it acts.
        positions: the position policy that was used.
    """

    def __init__(self, strategy: PruningStrategy, positions: Positions) -> None:
        self.strategy = strategy
        self.site = site_of(strategy.place)
        self.positions = positions
        self._calls: list[CallRecord] = []
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles carry: the calls so far, without the lock."""
        with self._lock:
            return {**vars(self), "_calls": list(self._calls), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        """The calls so far, those without images included."""
        return tuple(self._calls)

    @property
    def images(self) -> list[ImageRecord]:
        """Every image of every call so far, in order."""
        return [image for call in self._calls for image in call.images]

    @property
    def tokens_in(self) -> int:
        """Visual tokens that came, over all images."""
        return sum(image.tokens_in for image in self.images)

    @property
    def tokens_kept(self) -> int:
        """Visual tokens that were left behind the last stage, over all images."""
        return sum(image.tokens_kept for image in self.images)

    @property
    def kept_share(self) -> float:
        """`tokens_kept / tokens_in`; NaN before the first image."""
        return self.tokens_kept / self.tokens_in if self.images else float("nan")

    @property
    def select_seconds(self) -> float:
        """Seconds spent on choosing, over all calls."""
        return sum(call.select_seconds for call in self._calls)

    def add(
        self,
        kind: CallKind,
        prompt: Prompt,
        columns: Int[Tensor, "b k"],
        selections: Sequence[Selection],
        seconds: float,
        layer_tokens: Sequence[tuple[int, ...]] = (),
        *,
        cached: int = 0,
        frozen: Sequence[bool] = (),
    ) -> None:
        """Note one call. One transfer from the device.

        Args:
            kind: what was called.
            prompt: the dense prompt.
            columns: its column in each slot of what is left, -1 on padding.
            selections: what is left of each image.
            seconds: spent on choosing.
            layer_tokens: for each image the tokens that enter each decoder layer, when that is not always the same.
            cached: leading columns that stand in a cache already.
            frozen: for each image whether its selection is that of an earlier turn.
        """
        shape = columns.shape
        flat = torch.cat([columns.flatten(), *(s.indices.to(columns.device) for s in selections)]).cpu()
        places, *indices = flat.split([columns.numel(), *(s.kept for s in selections)])
        counts, place = layer_tokens or [()] * len(selections), self.strategy.place
        kept_from_before = frozen or [False] * len(selections)
        # Clones: a view would keep the whole transfer alive.
        with self._lock:
            images = tuple(
                ImageRecord(
                    call=len(self._calls),
                    prompt=segment.row,
                    image=segment.image,
                    tokens_in=selection.total,
                    tokens_kept=selection.kept,
                    indices=rows.clone(),
                    requested=selection.requested,
                    merged=selection.features is not None,
                    stages=selection.stages,
                    site=self.site,
                    positions=self.positions,
                    select_seconds=seconds,
                    layer=place.layer if isinstance(place, InDecoder) else None,
                    layer_tokens=entering,
                    frozen=old,
                    extra_tokens=0 if selection.extra is None else selection.extra.shape[0],
                    gradient=_gradient(kind, selection),
                    sizes=() if selection.sizes is None else tuple(selection.sizes.int().tolist()),
                )
                for segment, selection, rows, entering, old in zip(
                    prompt.segments, selections, indices, counts, kept_from_before, strict=True
                )
            )
            self._calls.append(
                CallRecord(
                    kind=kind,
                    prompts=prompt.ids.shape[0],
                    columns_in=prompt.ids.shape[1],
                    columns_kept=shape[1],
                    columns=places.clone().view(shape),
                    images=images,
                    select_seconds=seconds,
                    cached=cached,
                )
            )

    def add_plain(self, kind: CallKind, shape: tuple[int, int]) -> None:
        """Note one call without images."""
        call = CallRecord(
            kind=kind,
            prompts=shape[0],
            columns_in=shape[1],
            columns_kept=shape[1],
            columns=None,
            images=(),
            select_seconds=0.0,
        )
        with self._lock:
            self._calls.append(call)

    def summary(self) -> str:
        """One line for people."""
        images = self.images
        head = f"{self.strategy!r} at the {self.site}, {self.positions} positions"
        if not images:
            return f"{head}: {len(self._calls)} calls, no images"
        layers = sum(image.layer_average for image in images)
        average = f"; {layers / len(images):.1f} per image and decoder layer" if images[0].layer_tokens else ""
        return (
            f"{head}: {len(images)} images in {len(self._calls)} calls, kept {self.tokens_kept} of {self.tokens_in} "
            f"visual tokens ({100 * self.kept_share:.1f}%){average}, {1000 * self.select_seconds:.1f} ms choosing"
        )

    def __repr__(self) -> str:
        return f"Record({self.summary()})"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings and lists, ready for JSON."""
        return {
            "strategy": repr(self.strategy),
            "site": self.site,
            "positions": self.positions,
            "tokens_in": self.tokens_in,
            "tokens_kept": self.tokens_kept,
            "select_seconds": self.select_seconds,
            "calls": [
                {
                    "kind": call.kind,
                    "prompts": call.prompts,
                    "columns_in": call.columns_in,
                    "columns_kept": call.columns_kept,
                    "select_seconds": call.select_seconds,
                    "cached": call.cached,
                    "images": [image.to_dict() for image in call.images],
                }
                for call in self._calls
            ],
        }
