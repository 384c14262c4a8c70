"""The dense prompt: what the language model would have got without pruning, and where the images are in it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.core.signals import CLIP_TEXT, PROMPT_NUMBER, Signal
from tokenprune.core.tokens import Tokens
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import NO_SIGNALS, Adapter
from tokenprune.models.prompt.inputs import PadIds, check_ids, default_positions, padding_mask
from tokenprune.models.prompt.places import Places
from tokenprune.models.reading.vision import Grid, Vision

if TYPE_CHECKING:
    from tokenprune.models.encode.clip import Clip


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """One image of a prompt.

    Attributes:
        row: row of the batch.
        image: number of the image within its row.
        columns: int64 (n,), columns of its tokens, ascending; they need not be contiguous.
        grid: (rows, columns) of its raster, or None.
        start: row of `Vision.features` of its first token.
    """

    row: int
    image: int
    columns: Int[Tensor, " n"]
    grid: Grid
    start: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """A batch of dense prompts. Immutable. Letters: b rows, l columns, d width.

    Attributes:
        ids: int64 (b, l), token ids with one placeholder per visual token.
        embeds: float (b, l, d), text embeddings with the projected tokens in place.
        mask: bool (b, l), False on padding.
        positions: int64 (b, l), position of each column; (axes, b, l) for models with several position axes.
        segments: the images, in placeholder order.
        text: columns of each row's text tokens (no padding, no placeholders), int64.
        left_padded: True when no row has padding after its first token.
        vision: what the vision side said; None for a batch without images.
        labels: int64 (b, l), when given.
        extras: further per-column arguments of the model, by name.
        counting_axes: leading axes of `positions` that only count columns.
        first_position: what a plain forward adds to `positions`.
        clip: the adapter's, which reads the question.
        ends_in_image: whether the last token of some row is visual.
    """

    ids: Int[Tensor, "b l"]
    embeds: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    positions: Int[Tensor, "*axes b l"]
    segments: tuple[Segment, ...]
    text: tuple[Int[Tensor, " _"], ...]
    left_padded: bool
    vision: Vision | None = None
    labels: Int[Tensor, "b l"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    counting_axes: int = 0
    first_position: int = 0
    clip: "Clip | None" = None
    ends_in_image: bool = False

    @cached_property
    def places(self) -> Places:
        """The positions that feed the rotary embedding, and what the policy "compact" makes of them."""
        image = torch.full_like(self.ids, -1)
        if self.segments:
            counts = torch.tensor([segment.columns.shape[0] for segment in self.segments])
            rows = torch.tensor([segment.row for segment in self.segments]).repeat_interleave(counts).to(image.device)
            numbers = torch.arange(len(self.segments)).repeat_interleave(counts).to(image.device)
            image[rows, torch.cat([segment.columns for segment in self.segments])] = numbers
        positions = self.positions[None] if self.positions.ndim == 2 else self.positions[self.counting_axes :]
        return Places(positions=positions, image=image, mask=self.mask)

    def tokens(self, want: Collection[Signal] = NO_SIGNALS, *, attached: bool = False) -> list[Tokens]:
        """What a strategy sees: one `Tokens` per image, in placeholder order, with every signal that `vision` holds.

        `question` marks the text after the last image of the row.

        Args:
            want: signals; `CLIP_TEXT` is computed here, when it is among them and there is a `clip`.
            attached: leave what comes from the vision side connected to projector and tower, so that a gradient flows
                back through tokens that a strategy makes of it. What comes from the text is never connected.
        """
        if self.vision is None:
            return []
        vision, embeds = self.vision, self.embeds.detach()
        features = vision.features if attached else vision.features.detach()
        visual = features.to(embeds.device, embeds.dtype).split(vision.counts)
        text, question, clip_text = {}, {}, {}
        for segment in self.segments:  # the last image of a row wins
            row, columns = segment.row, self.text[segment.row]
            text[row] = embeds[row, columns]
            question[row] = columns > segment.columns[-1]
        if self.clip is not None and CLIP_TEXT in want:
            clip_text = {row: self.clip.text(self.clip.question(self.ids[row, self.mask[row]])) for row in text}
        images = []
        for i, segment in enumerate(self.segments):
            row, signals = segment.row, {PROMPT_NUMBER: segment.row, **vision.of(i, embeds.device, attached=attached)}
            if clip_text:
                signals[CLIP_TEXT] = clip_text[row].to(embeds.device)
            images.append(Tokens(visual[i], text[row], question[row], vision.grids[i], signals=signals))
        return images


def build_prompt(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    vision: Vision | None = None,
    *,
    forward: bool = False,
    pad: tuple[int | None, frozenset[int]] = (None, frozenset()),
) -> Prompt:
    """Merge text and images as the model itself would, and find each image's place.

    Images are told apart by the number of tokens that each one has, in the order of the placeholders: two images side
    by side need no text between them.

    Args:
        adapter: the model's adapter.
        inputs: `input_ids`, and `attention_mask`, `position_ids`, `labels` when there are any, as for the model.
        vision: from `adapter.encode`; None without images.
        forward: number columns as a plain forward does (0, 1, 2, ... with the padding) instead of as `generate` does
            (from the first token of each row).
        pad: padding id and end ids, by which padding is told when there is no mask, as `generate` does.

    Raises:
        TypeError: when `input_ids` or `attention_mask` is no tensor of the right kind.
        ValueError: when shapes do not fit, or placeholders and image tokens differ in number.
        UnsupportedError: when `attention_mask` hides visual tokens.
    """
    ids = adapter.to_model(check_ids(inputs))
    mask = padding_mask(inputs.get("attention_mask"), ids, pad)
    embeds = adapter.embed_text(ids)
    visual = is_placeholder(ids, adapter)
    # The only transfer from the device: two bits per column. What follows is planned on the host.
    visual_host, mask_host = torch.stack([visual, mask]).cpu().unbind()
    _refuse_hidden(visual_host, mask_host, inputs)
    segments: tuple[Segment, ...] = ()
    if vision is not None:
        segments = _segments(visual_host, vision, ids.device)
        features = vision.features.to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(visual.unsqueeze(-1), features)
    text = (mask_host & ~visual_host).nonzero()
    text_rows = text[:, 1].to(ids.device).split((mask_host & ~visual_host).sum(1).tolist())
    return Prompt(
        ids=ids,
        embeds=embeds,
        mask=mask,
        positions=adapter.positions(
            {**inputs, "attention_mask": mask.long()}, default_positions(mask, forward=forward), vision
        )
        - (adapter.first_position if forward and inputs.get("position_ids") is not None else 0),
        counting_axes=adapter.counting_axes,
        first_position=adapter.first_position,
        segments=segments,
        text=tuple(text_rows),
        left_padded=bool((mask_host.long().diff(dim=1) >= 0).all()),
        vision=vision,
        labels=_per_column("labels", inputs, ids),
        extras={name: inputs[name] for name in adapter.length_keys if inputs.get(name) is not None},
        clip=adapter.clip,
        ends_in_image=_ends_in_image(visual_host & mask_host, mask_host),
    )


def refuse_hidden(adapter: Adapter, inputs: Mapping[str, Any], pad: PadIds = (None, frozenset())) -> None:
    """Raise when the caller hides visual tokens from the language model.

    Budgets, rasters and scores are those of whole images: what a method takes for the image must be what the model
    sees.

    Args:
        adapter: the model's adapter.
        inputs: `input_ids`, and `attention_mask` when there is one.
        pad: see `build_prompt`.

    Raises:
        UnsupportedError: naming the prompt and the number of tokens.
    """
    ids = check_ids(inputs)
    mask = padding_mask(inputs.get("attention_mask"), ids, pad)
    visual, mask = torch.stack([is_placeholder(ids, adapter), mask]).cpu().unbind()
    _refuse_hidden(visual, mask, inputs)


def _refuse_hidden(visual: Bool[Tensor, "b l"], mask: Bool[Tensor, "b l"], inputs: Mapping[str, Any]) -> None:
    hidden = (visual & ~mask).sum(1)  # (b,)
    if not bool(hidden.any()):
        return
    row = int(hidden.nonzero()[0])
    what = "attention_mask hides"
    if inputs.get("attention_mask") is None:
        what = "without attention_mask, columns with pad_token_id are padding, which hides"
    raise UnsupportedError(
        f"prune: {what} {int(hidden[row])} of the {int(visual[row].sum())} visual tokens of prompt {row}; budgets, "
        "rasters and scores are those of whole images: unmask all tokens of an image (1 in attention_mask), or leave "
        "the image out of prompt and pixels"
    )


def _ends_in_image(visual: Bool[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> bool:
    last = torch.where(mask, torch.arange(mask.shape[1]), 0).amax(1, keepdim=True)  # (b, 1)
    return bool(visual.gather(1, last).any())


def is_placeholder(ids: Int[Tensor, "b l"], adapter: Adapter) -> Bool[Tensor, "b l"]:
    """True where a visual token goes."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in adapter.image_token_ids:
        found |= ids == token
    return found


def _segments(visual: Tensor, vision: Vision, device: torch.device) -> tuple[Segment, ...]:
    places = visual.nonzero()
    if places.shape[0] != sum(vision.counts):
        raise ValueError(
            f"prune: the prompts have {places.shape[0]} image placeholders but the images have "
            f"{sum(vision.counts)} tokens ({len(vision.counts)} images); make prompts and pixels in one processor call"
        )
    columns = places[:, 1].to(device).split(vision.counts)
    segments: list[Segment] = []
    start, image, previous = 0, 0, -1
    for i, count in enumerate(vision.counts):
        row, last_row = int(places[start, 0]), int(places[start + count - 1, 0])
        if row != last_row:
            raise ValueError(
                f"prune: image {i} has {count} tokens, but its placeholders begin in prompt {row} and end in "
                f"prompt {last_row}; give every prompt as many placeholders as its own images have tokens"
            )
        image = image + 1 if row == previous else 0
        segments.append(Segment(row=row, image=image, columns=columns[i], grid=vision.grids[i], start=start))
        start, previous = start + count, row
    return tuple(segments)


def _per_column(name: str, inputs: Mapping[str, Any], ids: Tensor) -> Tensor | None:
    value = inputs.get(name)
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.shape != ids.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"prune: {name} must have one entry per prompt column, {tuple(ids.shape)}, got {got}")
    return value.to(ids.device)
