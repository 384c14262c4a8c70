"""InternVL, Idefics3 and SmolVLM: every tile gives the same number of tokens, each made of a square of patches."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenprune.core.signals import GRID, Signal
from tokenprune.models.families.tiles import NO_CLS_ROW, Arrangement, Kind, TiledAdapter

_SQUARES = "its projector joins squares of neighbouring patches, so the tower must keep all of them"
_FRAMES = "frames of a video are images of the prompt"


class Run(NamedTuple):
    """Placeholders side by side: row, first column, length."""

    row: int
    start: int
    length: int


class InternVLAdapter(TiledAdapter):
    """Adapter for InternVL: placeholders side by side are one image; of several tiles the last shows the whole image.

    Tiles are numbered as in `Tokens.tiles`, so that one is number 0. Frames of a video are images.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"internvl"})
    modality_keys: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    reasons: ClassVar[Mapping[str, str]] = {"tower": _SQUARES, "vision_cls": NO_CLS_ROW, "video": _FRAMES}

    known: ClassVar[frozenset[Signal]] = TiledAdapter.known | {GRID}

    def arrangement(self, kind: Kind, inputs: Mapping[str, Any], passes: int, places: int) -> Arrangement:
        """See `TiledAdapter.arrangement`."""
        ids, pieces = inputs.get("input_ids"), [1] * passes
        if ids is not None:
            runs = runs_of(ids, int(self.model.config.image_token_id))
            pieces = self.images([Run(row, start, length // places) for row, start, length in runs], ids)
            if sum(pieces) != passes:  # not what the processor makes: `build_prompt` will say so
                pieces = [1] * passes
        side = int(places**0.5)
        numbers = [torch.tensor([*range(1, count), 0]).repeat_interleave(places) for count in pieces]

        def place(values: Tensor) -> list[Tensor]:
            return [image.flatten(0, 1) for image in values.split(pieces)]

        return Arrangement(
            pieces=tuple(pieces),
            numbers=tuple(None if count == 1 else number for count, number in zip(pieces, numbers, strict=True)),
            place=place,
            grids=tuple((side, side) if count == 1 else None for count in pieces),
            tile_grids=(None,) * len(pieces),
        )

    def images(self, runs: list[Run], ids: Int[Tensor, "b l"]) -> list[int]:
        """Tiles of each image, from runs whose length is counted in tiles."""
        return [run.length for run in runs]

    def group(self, values: Float[Tensor, "t p e"]) -> Float[Tensor, "t n e"]:
        """See `TiledAdapter.group`."""
        side = int(values.shape[1] ** 0.5)
        single = values.transpose(1, 2).reshape(-1, side, side, 1)
        squares = self.base.pixel_shuffle(single, scale_factor=self.model.config.downsample_ratio).mean(-1)
        return squares.reshape(values.shape[0], values.shape[2], -1).transpose(1, 2)


class IdeficsAdapter(InternVLAdapter):
    """Adapter for Idefics3 and SmolVLM: text stands between the tiles of an image, the whole image comes last.

    In the prompts of their processors two marks stand before each tile, the same first one everywhere, and a second one
    that tells the place of the tile. The second mark of a prompt's last tile is that of whole images: tiles up to one
    with this mark are one image. Tiles without such marks are images of their own. Frames of a video are images.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"idefics3", "smolvlm"})
    modality_keys: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask")
    reasons: ClassVar[Mapping[str, str]] = {
        "tower": _SQUARES,
        "cls_attention": "its SigLIP tower has no CLS token",
        "video": _FRAMES,
    }

    @property
    def decoder(self) -> Any:  # noqa: ANN401
        """The language model."""
        return self.base.text_model

    @property
    def vision_tower(self) -> nn.Module:
        """The module that sees the pixels."""
        tower: nn.Module = self.base.vision_model
        return tower

    @property
    def projector(self) -> nn.Module:
        """The linear layer behind the pixel shuffle."""
        projector: nn.Module = self.base.connector.modality_projection
        return projector

    def tower_layer(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """The last layer; there is no CLS token to drop."""
        return -1, 0

    def images(self, runs: list[Run], ids: Int[Tensor, "b l"]) -> list[int]:
        """See the class."""
        pieces: list[int] = []
        for row in sorted({run.row for run in runs}):
            mine = [run for run in runs if run.row == row]
            columns = ids[row].tolist()
            marks = [columns[max(run.start - 2, 0) : run.start] for run in mine]
            if len({tuple(mark[:1]) for mark in marks}) > 1 or any(run.length > 1 for run in mine) or len(marks[0]) < 2:
                pieces.extend([1] * sum(run.length for run in mine))
                continue
            pieces.append(0)
            for mark in marks:
                pieces[-1] += 1
                if mark == marks[-1]:
                    pieces.append(0)
            pieces.pop()
        return pieces

    def tiles(self, kind: Kind, inputs: Mapping[str, Any], pieces: Any) -> Tensor:  # noqa: ANN401
        """See `TiledAdapter.tiles`; the model tells fillers by their being all zero."""
        pixels = inputs[kind.argument].flatten(0, 1)
        return pixels[(pixels != 0).flatten(1).any(1)]

    def group(self, values: Float[Tensor, "t p e"]) -> Float[Tensor, "t n e"]:
        """See `TiledAdapter.group`."""
        tiles, patches, width = values.shape
        single = values.transpose(1, 2).reshape(tiles * width, patches, 1)
        squares = self.base.connector.pixel_shuffle(single, self.model.config.scale_factor).mean(-1)
        return squares.reshape(tiles, width, -1).transpose(1, 2)


def runs_of(ids: Int[Tensor, "b l"], token: int) -> list[Run]:
    """Stretches of `token`, row after row.

    Examples:
        >>> runs_of(torch.tensor([[1, 9, 9, 2, 9]]), 9)
        [Run(row=0, start=1, length=2), Run(row=0, start=4, length=1)]
    """
    found = torch.nn.functional.pad((ids == token).int(), (1, 1)).diff(dim=1)
    starts, ends = (found == 1).nonzero().tolist(), (found == -1).nonzero().tolist()
    return [Run(row, start, end[1] - start) for (row, start), end in zip(starts, ends, strict=True)]
