"""Families that see an image in several tiles: what is common to them."""

import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenprune.core.signals import GRID, IMAGE_KEY, PROJECT, TILE_GRID, TILES, FromProjector, FromTower, Signal
from tokenprune.models.families.adapter import NO_SIGNALS
from tokenprune.models.families.llava import LlavaAdapter
from tokenprune.models.hooks import hooked
from tokenprune.models.reading.attended import read_rows
from tokenprune.models.reading.interleave import in_prompt_order
from tokenprune.models.reading.tap import tap
from tokenprune.models.reading.vision import Grid, Vision, combined_keys, image_keys

NEWLINE = -1
"""`Tokens.tiles` of a token that ends a row and shows nothing."""

NO_RASTER = "an image in several tiles is no single raster"
NO_CLS_ROW = "it has one row per tile, not one per image"


class Kind(NamedTuple):
    """A kind of visual input: its argument, the method that encodes it, and where its placeholder's id stands."""

    argument: str
    method: str
    token: str


IMAGES = Kind("pixel_values", "get_image_features", "image_token_id")
VIDEOS = Kind("pixel_values_videos", "get_video_features", "video_token_id")


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrangement:
    """How the rows of a tower become the tokens of images.

    Attributes:
        pieces: tiles (of a video: frames) of each image.
        numbers: `Tokens.tiles` of each image; None for an image in one tile without newlines.
        place: from float (t, n, e), a row for each place of each tile, to float (k, e) for each image, a row for each
            of its tokens; rows of newline tokens are 0.
        grids: raster of each image, None where it has several tiles.
        tile_grids: (rows, columns) of the tiles behind tile 0 of each image, where known.
    """

    pieces: tuple[int, ...]
    numbers: tuple[Int[Tensor, " _"] | None, ...]
    place: Callable[[Tensor], Sequence[Tensor]]
    grids: tuple[Grid, ...]
    tile_grids: tuple[Grid, ...]


class TiledAdapter(LlavaAdapter):
    """Adapter for families in which an image takes several passes through the tower.

    Signals of the tower follow the tokens of all tiles, in the order in which they enter the language model.
    `vision_states` are the rows that the projector gets; `cls_attention` is summed and `vision_keys` averaged over the
    patches that make up a token. Newline tokens have zeros everywhere.
    """

    sites: ClassVar[frozenset[str]] = frozenset({"projector", "decoder"})
    images_apart: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = (IMAGES,)

    known: ClassVar[frozenset[Signal]] = LlavaAdapter.known - {GRID, PROJECT} | {TILES}

    def reads(self, signal: Signal) -> bool:
        """Those with a value for each token: of others there is one per tile, not one per image."""
        return super().reads(signal) and signal.token_axis is not None

    @property
    def projector(self) -> nn.Module:
        """The module that gets a row for each patch, or for each group of patches that make up a token."""
        projector: nn.Module = self.base.multi_modal_projector
        return projector

    @abstractmethod
    def arrangement(self, kind: Kind, inputs: Mapping[str, Any], passes: int, places: int) -> Arrangement:
        """Where the rows that the projector gets stand in the prompts.

        Args:
            kind: images or videos.
            inputs: what the caller gave the model.
            passes: tiles of all images.
            places: rows of one tile.
        """

    def completed(self, features: list[Tensor], counts: tuple[int, ...]) -> list[Tensor]:
        """The model's features with whatever else its own forward adds to them."""
        return features

    def group(self, values: Float[Tensor, "t p e"]) -> Float[Tensor, "t n e"]:
        """Mean over the patches that make up a token; here each patch is one."""
        return values

    def tower_layer(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """The layer whose output is used, counted as in `hidden_states`, and the rows dropped in front of it."""
        config = self.model.config
        layer, crop = (
            getattr(config, name) if inputs.get(name) is None else inputs[name]
            for name in ("vision_feature_layer", "vision_feature_select_strategy")
        )
        return (layer if isinstance(layer, int) else layer[-1]), int(crop == "default")

    def tiles(self, kind: Kind, inputs: Mapping[str, Any], pieces: Sequence[int]) -> Tensor:
        """Pixels of all tiles, without those that only fill up a batch."""
        pixels: Tensor = inputs[kind.argument]
        if pixels.ndim == 4:
            return pixels
        return torch.cat([image[:count] for image, count in zip(pixels, pieces, strict=True)])

    def encode(self, inputs: Mapping[str, Any], want: Collection[Signal] = NO_SIGNALS) -> Vision:
        """Run tower and projector once for each kind of input; see `Adapter.encode`."""
        want = [signal for signal in want if self.why_not(signal) is None]
        parts = [
            (int(getattr(self.model.config, kind.token)), self._encode(kind, inputs, want))
            for kind in self.kinds
            if inputs.get(kind.argument) is not None
        ]
        return in_prompt_order(parts, inputs.get("input_ids"))

    def _encode(self, kind: Kind, inputs: Mapping[str, Any], want: Collection[Signal]) -> Vision:
        method = getattr(self.base, kind.method)
        # The pixels go by position: their name changed between releases.
        known = list(inspect.signature(method).parameters)[1:]
        options = {name: inputs[name] for name in self.modality_keys if name in known and inputs.get(name) is not None}
        layer, crop = self.tower_layer(inputs)
        with ExitStack() as stack:
            taps = [stack.enter_context(tap(*reading)) for reading in self._readings(layer, want, crop)]
            given = stack.enter_context(inputs_of(self.projector))
            output = method(inputs[kind.argument], **options, return_dict=True)
        layout = self.arrangement(kind, inputs, *given[0].shape[:2])
        counts = tuple(len(image) for image in layout.place(given[0].new_zeros(*given[0].shape[:2], 1)))
        features = torch.cat(self.completed([image.flatten(0, -2) for image in output.pooler_output], counts))
        read = {signal: torch.stack(values) for seen in taps for signal, values in seen[0]().items()}
        rows = [signal for signal in want if isinstance(signal.source, FromProjector)]
        signals: dict[Signal, tuple[Any, ...]] = {TILES: layout.numbers, TILE_GRID: layout.tile_grids}
        signals |= {s: self._placed(s, torch.stack(v), layout, 1) for s, v in read_rows(rows, given[0], 0).items()}
        for signal, value in read.items():
            axis = 1 + (signal.token_axis or 0)
            signals[signal] = self._placed(signal, value, layout, value.shape[axis] // given[0].shape[1])
        if IMAGE_KEY in want:
            pixels = self.tiles(kind, inputs, layout.pieces)
            signals[IMAGE_KEY] = combined_keys(image_keys(pixels), layout.pieces)
        return Vision(features=features, counts=counts, grids=layout.grids, signals=signals)

    def _placed(self, signal: Signal, value: Tensor, layout: Arrangement, patches: int) -> tuple[Tensor, ...]:
        """The values of all tiles at the tokens of the images; `patches` make up a token."""
        axis = 1 + (signal.token_axis or 0)
        rows = value.movedim(axis, 1)  # (t, p, ...)
        single = rows.ndim == 2  # one number per patch
        rows = rows.unsqueeze(-1) if single else rows
        if patches > 1 or signal.source.__class__ is FromTower:
            rows = self.group(rows)  # (t, n, ...)
        if signal.merged == "sum":
            rows = rows * patches
        images = (image.squeeze(-1) if single else image for image in layout.place(rows))
        return tuple(image.movedim(0, axis - 1) for image in images)


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, the first argument of every call of `module` in this thread is appended to the list."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:
            seen.append(args[0])

    with hooked(module, note):
        yield seen
