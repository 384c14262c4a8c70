"""Positions of a prompt from which visual tokens are missing: the policy "compact".

A row of which nothing is dropped keeps the positions of the dense prompt. In the other rows gaps are closed.

* With one position axis what is left counts up from the position of the row's first token.
* With several (time, row, column) text counts on, and a pruned image takes the room of a smaller image, of as many
  frames, rows and columns as tokens are left in: on each axis by itself, the j-th smallest coordinate among the tokens
  that are left becomes the j-th smallest coordinate of the whole image. What follows keeps its distance to the largest
  coordinate before it. An image of which nothing is left takes no room. Tokens that a stage made count on, like text,
  from the largest coordinate of their image.

The first generated token follows in the same way. So no position depends on another row, on padding, or on the stages
in which tokens were dropped.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_WIDE = 2**32  # more than any two positions are apart


class Closed(NamedTuple):
    """Positions without the gaps that dropped tokens left.

    Attributes:
        positions: int64 (a, b, l), right where a column stays.
        following: int64 (a, b), of the first token after the prompt.
        made: int64 (b, l), for every visual column that of the first token made after its image, on all axes.
    """

    positions: Int[Tensor, "a b l"]
    following: Int[Tensor, "a b"]
    made: Int[Tensor, "b l"]


class _Groups(NamedTuple):
    """The columns of each row by run and coordinate. A group: columns of one run with one coordinate on one axis."""

    order: Tensor  # (a, b, l) columns, sorted
    group: Tensor  # (a, b, l) number of the group of each sorted column
    place: Tensor  # (a, b, l) coordinate of each group
    first: Tensor  # (a, b, l) number of the first group in the same run


@dataclass(frozen=True, eq=False)
class Places:
    """Where the columns of a batch of dense prompts are. Letters: a axes, b rows, l columns.

    Attributes:
        positions: int64 (a, b, l), the axes that feed the rotary embedding.
        image: int64 (b, l), number of the image of each visual column, -1 for text and padding.
        mask: bool (b, l), False on padding.
    """

    positions: Int[Tensor, "a b l"]
    image: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]

    @cached_property
    def runs(self) -> Int[Tensor, "b l"]:
        """For each column which run of its row it is in: visual columns of one image side by side; l for none."""
        before = torch.nn.functional.pad(self.image[:, :-1], (1, 0), value=-1)
        visual = self.image >= 0
        number = (visual & (self.image != before)).long().cumsum(1) - 1  # (b, l)
        return torch.where(visual, number, self.image.shape[1])

    @cached_property
    def last(self) -> Int[Tensor, " b"]:
        """Last column of each row that is no padding."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        return torch.where(self.mask, columns, 0).amax(1)

    @cached_property
    def following(self) -> Int[Tensor, "a b"]:
        """Position of the first token after the dense prompt: as `generate` counts, one further on each axis."""
        return self.positions.gather(-1, self.last.expand(self.positions.shape[0], -1)[..., None])[..., 0] + 1

    @cached_property
    def _groups(self) -> _Groups:
        axes, rows, length = self.positions.shape
        runs = self.runs.expand(axes, -1, -1)
        key, order = (runs * _WIDE + self.positions).sort(-1)  # (a, b, l)
        fresh = torch.ones_like(key, dtype=torch.bool)
        fresh[..., 1:] = key.diff(dim=-1) != 0
        group = fresh.long().cumsum(-1) - 1
        place = torch.zeros_like(key).scatter(-1, group, self.positions.gather(-1, order))
        run = torch.full_like(key, length).scatter(-1, group, runs.gather(-1, order))
        begins = torch.ones_like(fresh)
        begins[..., 1:] = run.diff(dim=-1) != 0
        number = torch.arange(length, device=key.device).expand(axes, rows, -1)
        return _Groups(order, group, place, torch.where(begins, number, 0).cummax(-1).values)

    def close(self, kept: Bool[Tensor, "b l"], made: Int[Tensor, "b l"] | None = None) -> Closed:
        """Positions by the rule "compact".

        Args:
            kept: True on the columns that stay, text among them.
            made: for each visual column the number of tokens that were made and follow it; nowhere when left out.
        """
        axes, rows, length = self.positions.shape
        if axes == 1:
            return self._count(kept, made)
        runs, visual = self.runs, self.image >= 0
        inside = self._inside(kept)  # (a, b, l), as if nothing were dropped in the images before

        # Of each run (column l of these tables: no run) the smallest coordinate, and the largest before and after.
        table = self.positions.new_zeros((rows, length + 1))  # (b, l + 1)
        least = _reduced(table, runs, self.positions.amin(0), "amin")
        top = self._largest(self.positions, visual, least - 1)  # (a, b, l + 1)
        kept_top = self._largest(inside, visual & kept, least - 1)
        end = _reduced(table - 1, runs, torch.arange(length, device=runs.device).expand(rows, -1), "amax", keep=True)
        follows, some = self._after(end + 1)  # (b, l + 1)
        counts = table if made is None else table.scatter_add(1, runs, made)

        # Axes that reach beyond what follows (the time of a long video) do not push it.
        pushes = (top < follows) | ~some  # (a, b, l + 1)
        lowest = least - 1
        reach = torch.where(pushes, top, lowest).amax(0)
        kept_reach = torch.where(pushes, kept_top, lowest).amax(0)
        after = torch.where(pushes.any(0), kept_reach, kept_top.amax(0)) + 1
        shrunk = torch.where(end >= 0, reach - kept_reach - counts, 0)[:, :length]  # (b, l)
        moved = torch.zeros_like(table).scatter_add(1, (end[:, :length] + 1), shrunk).cumsum(1)[:, :length]

        # The next token: after text one further; after an image as far from its largest coordinate as before.
        last = self.last[:, None]
        run = runs.gather(1, last)  # (b, 1)
        at = run.expand(self.positions.shape[0], -1, -1)
        pruned = kept_top.gather(-1, at) + self.following[..., None] - top.gather(-1, at)
        pruned = torch.where(counts.gather(1, run) > 0, (after + counts).gather(1, run), pruned)
        following = torch.where(run < length, pruned, self.following[..., None]) - moved.gather(1, last)
        return Closed(
            positions=torch.where(visual, inside, self.positions) - moved,
            following=following[..., 0],
            made=after.gather(1, runs) - moved,
        )

    def _count(self, kept: Tensor, made: Tensor | None) -> Closed:
        """`close` for one axis."""
        dense, real = self.positions[0], self.mask & kept
        new = torch.zeros_like(self.image) if made is None else made
        whole = (real.sum(1) == self.mask.sum(1)) & (new.sum(1) == 0)  # (b,)
        start = dense.gather(1, self.mask.long().argmax(1, keepdim=True))  # (b, 1)
        after = start + real.long().cumsum(1) + new.cumsum(1) - new  # (b, l), one after the column
        following = torch.where(whole, self.following[0], start[:, 0] + real.sum(1) + new.sum(1))
        return Closed(torch.where(whole[:, None], dense, after - 1)[None], following[None], after)

    def _inside(self, kept: Tensor) -> Tensor:
        """For each kept visual column the coordinate that it takes on each axis within its own image."""
        groups = self._groups
        stays = kept.expand(groups.order.shape).gather(-1, groups.order).long()  # (a, b, l)
        left = torch.zeros_like(stays).scatter_reduce(-1, groups.group, stays, "amax")  # of each group: is any kept
        rank = left.cumsum(-1) - left
        rank = rank - rank.gather(-1, groups.first)  # among the kept groups of its run
        taken = groups.place.gather(-1, groups.first + rank)
        return torch.zeros_like(stays).scatter(-1, groups.order, taken.gather(-1, groups.group))

    def _largest(self, positions: Tensor, where: Tensor, otherwise: Tensor) -> Tensor:
        """Of each run the largest coordinate on each axis among some columns; `otherwise` where there are none."""
        start = otherwise.expand(positions.shape[0], -1, -1)  # (a, b, l + 1)
        runs = torch.where(where, self.runs, self.runs.shape[1]).expand(positions.shape)
        return start.scatter_reduce(-1, runs, positions, "amax")

    def _after(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest coordinate of the first column from `column` on that is no padding, and whether there is one."""
        length = self.mask.shape[1]
        real = torch.where(self.mask, torch.arange(length, device=column.device), length)
        real = torch.nn.functional.pad(real, (0, 2), value=length)  # (b, l + 2)
        found = real.flip(1).cummin(1).values.flip(1).gather(1, column)
        return self.positions.amin(0).gather(1, found.clamp_max(length - 1)), found < length


def _reduced(table: Tensor, index: Tensor, values: Tensor, how: str, *, keep: bool = False) -> Tensor:
    return table.scatter_reduce(1, index, values, how, include_self=keep)
