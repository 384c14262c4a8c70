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

from tokenprune.models.adapter import NO_SIGNALS
from tokenprune.models.installed import hooked
from tokenprune.models.interleave import in_prompt_order
from tokenprune.models.llava import LlavaAdapter
from tokenprune.models.tap import tap
from tokenprune.models.vision import Grid, Vision, combined_keys, image_keys

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

    @property
    def signals(self) -> frozenset[str]:
        """Those of the CLS token only with a tower that has one."""
        embeddings = getattr(self.vision_tower, "embeddings", None)
        has_cls = any(getattr(embeddings, name, None) is not None for name in ("class_embedding", "cls_token"))
        of_cls = {"cls_attention", "cls_attention_first"} if has_cls else set()
        return frozenset({"text", "question", "key", "tiles", "vision_states", "vision_keys"} | of_cls)

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

    def encode(self, inputs: Mapping[str, Any], want: Collection[str] = NO_SIGNALS) -> Vision:
        """Run tower and projector once for each kind of input; see `Adapter.encode`."""
        parts = [
            (int(getattr(self.model.config, kind.token)), self._encode(kind, inputs, self.signals & set(want)))
            for kind in self.kinds
            if inputs.get(kind.argument) is not None
        ]
        return in_prompt_order(parts, inputs.get("input_ids"))

    def _encode(self, kind: Kind, inputs: Mapping[str, Any], want: Collection[str]) -> Vision:
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
        signals: dict[str, Any] = {}
        if "vision_states" in want:
            signals["vision_states"] = tuple(layout.place(given[0]))
        for name, value in ((name, value) for seen in taps for name, value in seen[0].items()):
            if name == "vision_keys":
                signals[name] = tuple(layout.place(self.group(value)))
            else:
                rows = self.group(value.transpose(1, 2)) * (value.shape[2] // given[0].shape[1])
                signals[name] = tuple(image.T for image in layout.place(rows))
        keys = None
        if "key" in want:
            keys = combined_keys(image_keys(self.tiles(kind, inputs, layout.pieces)), layout.pieces)
        return Vision(
            features=features,
            counts=counts,
            grids=layout.grids,
            keys=keys,
            tiles=layout.numbers,
            tile_grids=layout.tile_grids,
            **signals,
        )


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
