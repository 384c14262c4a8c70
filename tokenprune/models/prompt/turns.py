"""Continuing a conversation on the cache of its earlier turns, in which visual tokens are missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.models.prompt.dense import Prompt, Segment
from tokenprune.models.prompt.pruned import PrunedPrompt, compact


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedPrompt:
    """What stands in a cache that was filled with a pruned prompt and what was generated from it.

    The conversation of a row is what its owner sees: prompt and generated tokens, without padding, with all
    placeholders. Letters: b rows, s slots of the cache, t tokens of one conversation.

    Attributes:
        ids: int64 (t,) on the CPU, the conversation of each row.
        slots: int64 (t,) on the CPU for each row: where a token stands in the cache; -1 for visual tokens that were
            dropped and for the last generated token, which no layer has seen.
        prompt: number of tokens of each row's prompt, the part that later turns must repeat.
        positions: int64 (b, s) or (axes, b, s), position of each slot.
        following: int64 (b,) or (axes, b), position of the first token after each row's prompt.
        counting_axes: leading axes of `positions` that only count columns.
        keys: the images of each row, by `Tokens.key`; None when the family has no such keys.
        policy: how positions were made.
    """

    ids: tuple[Int[Tensor, " _"], ...]
    slots: tuple[Int[Tensor, " _"], ...]
    prompt: tuple[int, ...]
    positions: Int[Tensor, "*axes b s"]
    following: Int[Tensor, "*axes b"]
    counting_axes: int
    keys: tuple[tuple[int, ...], ...] | None
    policy: Positions

    @property
    def length(self) -> int:
        """Number of slots."""
        return self.positions.shape[-1]


def cached_prompt(
    prompt: Prompt,
    pruned: PrunedPrompt,
    sequences: Int[Tensor, "r _"],
    length: int,
    keys: tuple[tuple[int, ...], ...] | None = None,
) -> CachedPrompt:
    """Describe the cache that `generate` left behind.

    Args:
        prompt: the dense prompt.
        pruned: what entered the language model.
        sequences: int64 (b * copies, l + new), what `generate` returned: the dense prompt and the new tokens.
        length: number of slots in the cache.
        keys: of each row its images.

    Raises:
        ValueError: when a cache of that length cannot have come from this call.
    """
    dense, before, new = prompt.ids.shape[1], pruned.ids.shape[1], sequences.shape[1] - prompt.ids.shape[1]
    if length != before + new - 1:
        raise ValueError(
            f"cached_prompt: a cache of {length} slots does not fit {before} columns of prompt and {new} new tokens"
        )
    copies = sequences.shape[0] // prompt.ids.shape[0]
    place = torch.full((*prompt.ids.shape,), -1)
    columns = pruned.columns.cpu()
    rows, slots = (columns >= 0).nonzero(as_tuple=True)
    place[rows, columns[rows, slots]] = slots
    generated = torch.arange(before, before + new)
    generated[-1:] = -1
    mask, told = prompt.mask.cpu(), sequences.cpu()
    ids, where = [], []
    for row in range(sequences.shape[0]):
        real = mask[row // copies]
        ids.append(torch.cat([told[row, :dense][real], told[row, dense:]]))
        where.append(torch.cat([place[row // copies][real], generated]))
    following = pruned.next_position
    steps = torch.arange(new - 1, device=following.device)
    positions = torch.cat([pruned.positions, following[..., None] + steps], dim=-1)
    counts = [int(n) for n in mask.sum(1)]
    return CachedPrompt(
        ids=tuple(ids),
        slots=tuple(where),
        prompt=tuple(n for n in counts for _ in range(copies)),
        positions=positions.repeat_interleave(copies, dim=-2),
        following=following.repeat_interleave(copies, dim=-1),
        counting_axes=prompt.counting_axes,
        keys=None if keys is None else tuple(row for row in keys for _ in range(copies)),
        policy=pruned.policy,
    )


class Overlap(NamedTuple):
    """Which part of a new prompt the cache holds.

    Attributes:
        cached: number of leading tokens of each row that need not be fed again.
        slots: of each row the slots of those of them that were kept, ascending.
        tail: bool (b, l), True on the columns that are fed.
    """

    cached: tuple[int, ...]
    slots: tuple[Int[Tensor, " _"], ...]
    tail: Bool[Tensor, "b l"]


def overlap(cached: CachedPrompt, ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Overlap:
    """Compare a whole conversation with what is in the cache.

    The earlier prompt must be repeated exactly. Of the answer generated from it, the part up to the first difference is
    used again: an end token that the caller left out, padding behind it, or an answer that was tokenised anew.

    Args:
        cached: what is in the cache.
        ids: the whole conversation, earlier turns included, with all placeholders.
        mask: False on padding.

    Raises:
        ValueError: when the prompts are no continuations of those in the cache.
    """
    if ids.shape[0] != len(cached.ids):
        raise ValueError(
            f"prune: {ids.shape[0]} prompts continue a cache of {len(cached.ids)}; give one prompt per row of the cache"
        )
    host, real = ids.cpu(), mask.cpu()
    counts, slots = [], []
    tail = real.clone()
    for row in range(ids.shape[0]):
        now, then, where, prompt = host[row][real[row]], cached.ids[row], cached.slots[row], cached.prompt[row]
        shared = min(len(now), len(then))
        differ = (now[:shared] != then[:shared]).nonzero()
        same = int(differ[0]) if len(differ) else shared
        if same < prompt:
            raise ValueError(
                f"prune: past_key_values hold a conversation that prompt {row} does not continue: it differs from its "
                f"prompt at token {same} of {prompt}; pass the whole conversation, for instance "
                "torch.cat([outputs.sequences, new_ids], dim=1), or leave past_key_values out"
            )
        # The last generated token is in no layer's cache, and the last of the new prompt must be fed to get its logits.
        known = int((where[prompt:] >= 0).sum())
        use = min(same, prompt + known, len(now) - 1)
        counts.append(use)
        slots.append(where[:use][where[:use] >= 0])
        tail[row, real[row].nonzero().flatten()[:use]] = False
    return Overlap(tuple(counts), tuple(slots), tail.to(mask.device))


def new_segments(prompt: Prompt, seen: Overlap) -> list[int]:
    """Numbers of those images of `prompt.segments` that are not in the cache."""
    first = [int(segment.columns[0]) for segment in prompt.segments]
    return [i for i, segment in enumerate(prompt.segments) if bool(seen.tail[segment.row, first[i]])]


def continue_prompt(
    prompt: Prompt, selections: Sequence[Selection], cached: CachedPrompt, seen: Overlap
) -> tuple[Prompt, PrunedPrompt]:
    """The columns for a call that continues a cache: its slots, then what is new, shortened.

    transformers takes a prompt in embeddings as the *whole* sequence and feeds what the cache does not hold. So every
    slot gets a column (its embedding is never looked at), masked where the slot is not wanted any more; the new part
    follows, padded on its left.

    Args:
        prompt: the whole conversation, dense; when it is without `vision` its new part must have no images.
        selections: one per image that is not in the cache, in placeholder order.
        cached: what is in the cache.
        seen: from `overlap`.

    Raises:
        ValueError: when part of an image would have to be fed.

    Returns:
        The dense prompt with its new images only, and the pruned one: `columns` and `ids` name for every slot of the
        cache the column of the conversation that stands there.
    """
    fresh = [prompt.segments[i] for i in new_segments(prompt, seen)]
    fed = sum(segment.columns.shape[0] for segment in fresh)
    fed += sum(int(seen.tail[row, columns].sum()) for row, columns in enumerate(prompt.text))
    if fed != int(seen.tail.sum()):
        raise ValueError(
            "prune: a prompt that is in the cache already and ends in an image cannot be continued from it"
        )
    tail = _tail_prompt(prompt, fresh, cached, seen)
    short = compact(tail, selections, positions=cached.policy, shortcut=False)
    rows, length = prompt.ids.shape[0], cached.length
    columns = torch.full((rows, length), -1, device=prompt.ids.device)
    for row in range(rows):
        place, slots = _columns(prompt, row), seen.slots[row]
        held = (cached.slots[row][: seen.cached[row]] >= 0).nonzero().flatten()
        columns[row, slots.to(columns.device)] = place[: seen.cached[row]][held.to(place.device)]
    mask = (columns >= 0).long()
    filler = prompt.mask.long().argmax(1, keepdim=True)
    ids = prompt.ids.gather(1, torch.where(columns >= 0, columns, filler))
    width = short.embeds.shape[-1]
    extras = {
        name: torch.cat([value.to(ids.device).gather(1, columns.clamp_min(0)) * mask, short.extras[name]], dim=1)
        for name, value in prompt.extras.items()
    }
    return replace(prompt, segments=tuple(fresh)), replace(
        short,
        ids=torch.cat([ids, short.ids], dim=1),
        embeds=torch.cat([short.embeds.new_zeros((rows, length, width)), short.embeds], dim=1),
        mask=torch.cat([mask, short.mask], dim=1),
        positions=torch.cat([cached.positions.to(short.positions), short.positions], dim=-1),
        columns=torch.cat([columns, short.columns], dim=1),
        extras=extras,
        dense_ids=prompt.ids,
    )


def check_images(prompt: Prompt, keys: Mapping[int, Any], cached: CachedPrompt, seen: Overlap) -> None:
    """Raise when an image of an earlier turn is not the one whose tokens are in the cache.

    Args:
        prompt: the whole conversation.
        keys: `Tokens.key` by number of the segment.
        cached: what is in the cache.
        seen: from `overlap`.

    Raises:
        ValueError: naming the image.
    """
    fresh = set(new_segments(prompt, seen))
    for i, segment in enumerate(prompt.segments):
        if i in fresh or cached.keys is None or i not in keys:
            continue
        if keys[i] != cached.keys[segment.row][segment.image]:
            raise ValueError(
                f"prune: image {segment.image} of prompt {segment.row} is not the one whose tokens past_key_values "
                "hold; leave past_key_values out, or pass the images of the whole conversation in their order"
            )


def _columns(prompt: Prompt, row: int) -> Tensor:
    return prompt.mask[row].nonzero().flatten()


def _tail_prompt(prompt: Prompt, fresh: Sequence[Segment], cached: CachedPrompt, seen: Overlap) -> Prompt:
    """The new part alone, as if the columns in the cache were padding; its positions go on from those in the cache."""
    mask = seen.tail
    positions = prompt.positions
    if cached.policy == "compact" or prompt.vision is None:
        # As far from each other as in the dense prompt. The first is as many after the cached prompt's end as tokens of
        # the answer are used again; where axes differ there (a prompt that ended in an image), from the furthest.
        following = cached.following.to(positions.device)
        if following.ndim > 1:
            axes = cached.counting_axes
            places = following[axes:].amax(0, keepdim=True).expand(len(following) - axes, -1)
            following = torch.cat([following[:axes], places])
        used = torch.tensor([use - n for use, n in zip(seen.cached, cached.prompt, strict=True)]).to(following)
        first = mask.long().argmax(1, keepdim=True)
        begin = positions.gather(-1, first.expand(*positions.shape[:-1], -1))
        positions = (positions - begin + (following + used)[..., None]).masked_fill(~mask, 0)
    text = tuple(columns[mask[row, columns]] for row, columns in enumerate(prompt.text))
    return replace(prompt, mask=mask, positions=positions, segments=tuple(fresh), text=text)
