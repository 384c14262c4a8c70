"""From a dense prompt and what was kept of its images to a shorter prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.core.fields import check_choice
from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt.dense import Prompt
from tokenprune.models.prompt.labels import labels_at


@dataclass(frozen=True, eq=False, kw_only=True)
class PrunedPrompt:
    """A batch of shorter prompts, padded on the left. Letters: b rows, k columns, d width.

    Attributes:
        ids: int64 (b, k), token ids; padding slots repeat some dropped or padding column of the same row.
        embeds: float (b, k, d), zero on padding.
        mask: int64 (b, k), 0 on padding.
        positions: int64 (b, k) or (axes, b, k), 0 on padding.
        columns: int64 (b, k), column of the dense prompt that stands here, -1 on padding.
        labels: int64 (b, k), when the dense prompt had labels.
        extras: further per-column arguments.
        following: int64 (b,) or (axes, b), position of the first generated token; None when all prompts end in text:
            then it is one after the last of `positions`.
        policy: how positions were made.
        dense_ids: int64 (b, l), the prompt as the caller gave it.
        first_position: what a plain forward adds to `positions`; `generate` does it itself.
        feature_rows: int64 (b, k), for models whose decoder adds features to the visual tokens: the row of `deepstack`
            for each slot, -1 on text and padding.
        deepstack: float (layers, n, d), these features, for all visual tokens of the dense prompt.
    """

    ids: Int[Tensor, "b k"]
    embeds: Float[Tensor, "b k d"]
    mask: Int[Tensor, "b k"]
    positions: Int[Tensor, "*axes b k"]
    columns: Int[Tensor, "b k"]
    policy: Positions
    dense_ids: Int[Tensor, "b l"]
    following: Int[Tensor, "*axes b"] | None = None
    labels: Int[Tensor, "b k"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    first_position: int = 0
    feature_rows: Int[Tensor, "b k"] | None = None
    deepstack: Float[Tensor, "layers n d"] | None = None

    def as_inputs(self) -> dict[str, Any]:
        """Arguments for a plain forward: `inputs_embeds`, `attention_mask`, `position_ids`, `labels` when given.

        Models whose decoder adds features to the visual tokens need `injected` around the call as well.
        """
        inputs = {
            "inputs_embeds": self.embeds,
            "attention_mask": self.mask,
            "position_ids": self.positions + self.first_position,
            **self.extras,
        }
        return inputs if self.labels is None else {**inputs, "labels": self.labels}

    @property
    def next_position(self) -> Int[Tensor, "*axes b"]:
        """Position of the first generated token."""
        return self.positions[..., -1] + 1 if self.following is None else self.following

    def jumps(self) -> bool:
        """Whether in some row the first generated token is not one after the last token on every axis."""
        return self.following is not None and bool((self.following != self.positions[..., -1] + 1).any())

    def generate_kwargs(self, *, placed: bool = False) -> dict[str, Any]:
        """Arguments for `generate`: the pruned ids beside the embeddings, and no pixels.

        With ids as long as the embeddings a static cache gets no slot too many. The sequences that come back start with
        the pruned ids; `restore` puts the caller's prompt in their place.

        Args:
            placed: True for a call inside `ready` (decoder/inject.py). `generate` counts on from the last position
                that it is given. So after an image whose last tokens were dropped it is given the position before
                that of the next token, and `ready` lets the language model have the last token's own.

        Raises:
            UnsupportedError: when a prompt ends in such an image and `placed` is False.
        """
        positions = self.positions
        if placed and self.following is not None:
            positions = torch.cat([positions[..., :-1], self.following[..., None] - 1], dim=-1)
        elif self.jumps():
            raise UnsupportedError(
                "generate_kwargs: a prompt ends in an image whose last tokens were dropped, and `generate` would count "
                "on from the last kept one; call it inside `with ready(adapter, pruned):` with "
                "generate_kwargs(placed=True)"
            )
        return {
            "input_ids": self.ids,
            "inputs_embeds": self.embeds,
            "attention_mask": self.mask,
            "position_ids": positions,
            **self.extras,
        }

    def restore(self, sequences: Int[Tensor, "s t"]) -> Int[Tensor, "s _"]:
        """`sequences` from `generate` with the caller's prompt in front instead of the pruned one.

        Args:
            sequences: int64 (b * r, k + new), r rows per prompt (beams, return sequences).
        """
        copies = sequences.shape[0] // self.dense_ids.shape[0]
        prompts = self.dense_ids.to(sequences.device).repeat_interleave(copies, dim=0)
        return torch.cat([prompts, sequences[:, self.ids.shape[1] :]], dim=1)


class Pruned(NamedTuple):
    """A batch before and after, and what was chosen."""

    prompt: Prompt
    pruned: PrunedPrompt
    selections: list[Selection]
    seconds: float
    keys: tuple[tuple[int, ...], ...] | None = None
    """Of each row its images by `Tokens.key`, those in a cache included; None when the family has no such keys."""
    cached: int = 0
    """Leading columns that stand in a cache already."""
    frozen: tuple[bool, ...] = ()
    """For each image whether an earlier turn's selection was kept; empty for nowhere."""


def compact(
    prompt: Prompt, selections: Sequence[Selection], *, positions: Positions = "compact", shortcut: bool = True
) -> PrunedPrompt:
    """Drop the visual tokens that were not kept. Text is never dropped.

    Args:
        prompt: the dense prompt.
        selections: one per image of `prompt.segments`. Kept tokens of an image that are not ascending enter the model
            in the order of their indices, in the columns that the kept tokens had; features of merging methods replace
            the tokens at their indices.
        positions: "original": every token keeps its position in the dense prompt. "compact": gaps are closed, by the
            rule that `models/prompt/places.py` states: with one axis positions count up from that of the row's first
            token; with several an image has the positions of a smaller image, of as many frames, rows and columns as
            tokens were kept in. A row of which everything is kept has its dense positions under both.
        shortcut: hand the dense prompt through untouched when everything is kept in order, its padding included.

    Returns:
        The pruned prompt. The label of each row's first token becomes -100 (in a padded batch the padding slot before
        it would be trained to predict it), as does that of padding.

    Raises:
        ValueError: when selections and images do not fit together, or the policy is unknown.
    """
    check_choice("compact", "positions", positions, ("original", "compact"))
    _check_selections(prompt, selections)
    if shortcut and _keeps_everything(selections):
        return _dense(prompt, positions)
    rows, columns = _kept_places(prompt, selections)
    embeds = prompt.embeds
    if any(selection.features is not None for selection in selections):
        embeds = embeds.clone()
        embeds[rows, columns] = _replacements(prompt, selections, rows, columns)
    flags = prompt.mask.clone()
    for segment in prompt.segments:
        flags[segment.row, segment.columns] = False
    flags[rows, columns] = True  # none of them is padding: `build_prompt` refuses masks that hide visual tokens
    lengths = [text.shape[0] for text in prompt.text]
    for segment, selection in zip(prompt.segments, selections, strict=True):
        lengths[segment.row] += selection.kept
    source, mask = _source(flags, max(lengths), rows, columns, prompt, selections)
    batch = torch.arange(source.shape[0], device=source.device)[:, None]
    places, following = _positions(prompt, source, mask, flags, positions)
    return PrunedPrompt(
        ids=prompt.ids[batch, source],
        embeds=embeds[batch, source].masked_fill(~mask.unsqueeze(-1), 0),
        mask=mask.long(),
        positions=places,
        following=following if prompt.ends_in_image else None,
        columns=source.masked_fill(~mask, -1),
        labels=None if prompt.labels is None else labels_at(prompt.labels, source.masked_fill(~mask, -1)),
        extras={
            name: value.to(source.device)[batch, source].masked_fill(~mask, 0) for name, value in prompt.extras.items()
        },
        policy=positions,
        dense_ids=prompt.ids,
        first_position=prompt.first_position,
        **_deepstack(prompt, source, mask),
    )


def _deepstack(prompt: Prompt, source: Tensor, mask: Tensor) -> dict[str, Any]:
    """What the decoder adds, and which of its rows goes to which slot."""
    if prompt.vision is None or prompt.vision.deepstack is None:
        return {}
    rows = torch.full_like(prompt.ids, -1)
    for segment in prompt.segments:
        rows[segment.row, segment.columns] = segment.start + torch.arange(len(segment.columns), device=rows.device)
    return {"feature_rows": rows.gather(1, source).masked_fill(~mask, -1), "deepstack": prompt.vision.deepstack}


def _check_selections(prompt: Prompt, selections: Sequence[Selection]) -> None:
    if len(selections) != len(prompt.segments):
        raise ValueError(f"compact: {len(selections)} selections for {len(prompt.segments)} images; give one per image")
    for i, (segment, selection) in enumerate(zip(prompt.segments, selections, strict=True)):
        if selection.total != segment.columns.shape[0]:
            raise ValueError(
                f"compact: selection {i} is of {selection.total} tokens but the image has {segment.columns.shape[0]}; "
                "keep the order of prompt.tokens()"
            )


def _keeps_everything(selections: Sequence[Selection]) -> bool:
    if any(selection.kept != selection.total or selection.features is not None for selection in selections):
        return False
    return all(torch.equal(s.indices, torch.arange(s.total, device=s.indices.device)) for s in selections)


def _dense(prompt: Prompt, policy: Positions) -> PrunedPrompt:
    everywhere = torch.arange(prompt.ids.shape[1], device=prompt.ids.device).expand(prompt.ids.shape)
    return PrunedPrompt(
        ids=prompt.ids,
        embeds=prompt.embeds,
        mask=prompt.mask.long(),
        positions=prompt.positions,
        columns=everywhere.masked_fill(~prompt.mask, -1),
        labels=prompt.labels,
        extras=prompt.extras,
        policy=policy,
        dense_ids=prompt.ids,
        first_position=prompt.first_position,
        **_deepstack(prompt, everywhere, prompt.mask),
    )


def _kept_places(prompt: Prompt, selections: Sequence[Selection]) -> tuple[Tensor, Tensor]:
    """Row and column of every kept visual token, image after image, in the order of the selection."""
    device = prompt.ids.device
    if not selections:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.int64, device=device)
    pairs = list(zip(prompt.segments, selections, strict=True))
    rows = torch.tensor([segment.row for segment, _ in pairs]).repeat_interleave(
        torch.tensor([s.kept for _, s in pairs])
    )
    return rows.to(device), torch.cat([segment.columns[s.indices.to(device)] for segment, s in pairs])


def _replacements(prompt: Prompt, selections: Sequence[Selection], rows: Tensor, columns: Tensor) -> Tensor:
    own = prompt.embeds[rows, columns].split([selection.kept for selection in selections])
    mixed = [old if s.features is None else s.features.to(old) for old, s in zip(own, selections, strict=True)]
    return torch.cat(mixed)


def _source(
    flags: Tensor, length: int, rows: Tensor, columns: Tensor, prompt: Prompt, selections: Sequence[Selection]
) -> tuple[Tensor, Tensor]:
    """For every slot of the pruned prompt the dense column that goes there, and where slots are real."""
    counts = flags.sum(1, keepdim=True)
    # A stable sort puts dropped columns first and kept ones, in order, last: the result is padded on the left.
    source = flags.to(torch.int8).sort(dim=1, stable=True).indices[:, flags.shape[1] - length :]
    mask = torch.arange(length, device=flags.device) >= length - counts
    if selections:
        slots = flags.long().cumsum(1) - 1 + length - counts
        image = torch.arange(len(selections)).repeat_interleave(torch.tensor([s.kept for s in selections])).to(rows)
        # Columns of each image in ascending order, images after each other: the slots its tokens fill.
        ascending = (image * flags.shape[1] + columns).sort().values % flags.shape[1]
        source = source.clone()
        source[rows, slots[rows, ascending]] = columns
    return source, mask


def _positions(prompt: Prompt, source: Tensor, mask: Tensor, flags: Tensor, policy: Positions) -> tuple[Tensor, Tensor]:
    """Positions of all slots (axes, b, k) or (b, k), and of the first token after them (axes, b) or (b,)."""
    dense, following = prompt.places.positions, prompt.places.following
    if policy == "compact":
        dense, following, _ = prompt.places.close(flags)
        if prompt.positions.ndim == 2:  # places in the sequence, which is that of the slots, whatever token is there
            source = source.masked_fill(~mask, -1).sort(dim=1).values.clamp_min(0)
    positions = dense.gather(-1, source.expand(dense.shape[0], -1, -1)).masked_fill(~mask, 0)
    if prompt.positions.ndim == 2:
        return positions[0], following[0]
    axes = prompt.counting_axes
    first = prompt.mask.long().argmax(1, keepdim=True)
    start = prompt.positions[:axes].gather(-1, first.expand(axes, -1, -1))
    counted = (start + mask.long().cumsum(1) - 1).masked_fill(~mask, 0)
    return torch.cat([counted, positions]), torch.cat([counted[..., -1] + 1, following])
