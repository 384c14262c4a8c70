"""The policy "compact" against loops, against dense prompts with smaller images, and by what it promises."""

from dataclasses import dataclass, field
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.family_oracle import qwen_places
from tokenprune.models.prompt.places import Places
from tokenprune.testing.reference import closed_places

IMAGE = 7


@dataclass
class Row:
    """A dense prompt without padding: positions (axes, n), columns of the images, and which of their tokens stay."""

    places: list[list[int]] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)

    def tensor(self) -> Tensor:
        return torch.tensor(self.places).T

    def naive(self) -> tuple[Tensor, Tensor]:
        dense = self.tensor()
        return closed_places(dense if len(dense) > 1 else dense[0], self.images, self.kept)

    def stays(self) -> Tensor:
        flags = torch.ones(len(self.places), dtype=torch.bool)
        for columns, kept in zip(self.images, self.kept, strict=True):
            flags[columns] = False
            flags[[columns[i] for i in kept]] = True
        return flags


def draw_row(draw: Random, axes: int) -> Row:
    """Text and images as a model with that many axes numbers them, or as a caller might."""
    row, at = Row(), draw.randint(0, 3)
    odd = draw.random() < 0.3  # a caller's own positions: steps of more than one, or of none
    for _ in range(draw.randint(1, 5)):
        if draw.random() < 0.5 or not row.places:
            for _ in range(draw.randint(1, 3)):
                row.places.append([at] * axes)
                at += draw.randint(0, 3) if odd else 1
            continue
        t, h, w, step = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 4), draw.choice((1, 4))
        if axes == 1:
            raster = [[at + i] for i in range(t * h * w)]
        else:
            raster = [[at + step * f, at + y, at + x] for f in range(t) for y in range(h) for x in range(w)]
        columns = list(range(len(row.places), len(row.places) + len(raster)))
        if draw.random() < 0.3 and len(raster) > 1:  # in two parts with a word between them
            cut = draw.randint(1, len(raster) - 1)
            raster.insert(cut, [max(max(place) for place in raster[:cut])] * axes)
            columns = columns[:cut] + [c + 1 for c in columns[cut:]]
        row.places += raster
        row.images.append(columns)
        share = draw.choice((0.0, 0.3, 0.7, 1.0))
        row.kept.append([i for i in range(len(columns)) if draw.random() < share])
        at = max(max(h, w) + at if axes > 1 else at + t * h * w, at)
    return row


def batch_of(rows: list[Row], draw: Random) -> tuple[Places, Tensor, list[Tensor]]:
    """The rows with padding around and, without images, between their columns; what stays, and where the rows are."""
    length, axes = max(len(row.places) for row in rows) + draw.randint(0, 3), len(rows[0].places[0])
    positions = torch.full((axes, len(rows), length), draw.choice((0, 50)))
    image, mask = torch.full((len(rows), length), -1), torch.zeros(len(rows), length, dtype=torch.bool)
    kept, where, number = torch.zeros_like(mask), [], 0
    for i, row in enumerate(rows):
        owner = {c: n for n, columns in enumerate(row.images) for c in columns}
        places = sorted(draw.sample(range(length), len(row.places)))
        # Padding within a run would part it, which masks that hide visual tokens do not reach.
        start = draw.randint(0, length - len(places))
        at = torch.tensor(places if not owner else range(start, start + len(places)))
        where.append(at)
        positions[:, i, at], mask[i, at], kept[i, at] = row.tensor(), True, row.stays()
        for c, n in owner.items():
            image[i, at[c]] = number + n
        number += len(row.images)
    return Places(positions=positions, image=image, mask=mask), kept, where


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9), axes=st.sampled_from([1, 3]))
def test_closing_gaps_equals_loops(seed: int, axes: int) -> None:
    draw = Random(seed)
    rows = [draw_row(draw, axes) for _ in range(draw.randint(1, 3))]
    places, kept, where = batch_of(rows, draw)
    closed = places.close(kept)
    whole = places.close(places.mask)
    for i, (row, at) in enumerate(zip(rows, where, strict=True)):
        expected, following = row.naive()
        stays = row.stays()
        found = closed.positions[:, i, at]
        assert torch.equal(found[:, stays], expected.reshape(axes, -1)[:, stays])
        assert torch.equal(closed.following[:, i], following.reshape(axes))
        # Everything kept: the dense prompt.
        assert torch.equal(whole.positions[:, i, at], row.tensor())
        assert torch.equal(whole.following[:, i], row.tensor()[:, -1] + 1)
        # Without neighbours and padding: the same.
        alone, alone_kept, _ = batch_of([row], Random(0))
        assert torch.equal(alone.close(alone_kept).following[:, 0], closed.following[:, i])


def mrope(grids: list[tuple[int, int, int]], family: str, end: bool) -> tuple[Tensor, list[list[int]]]:
    """Dense positions of "word image word image ..." and the images' columns, counted token by token."""
    ids, images = [0], []
    for t, h, w in grids:
        images.append(list(range(len(ids), len(ids) + t * h * w)))
        ids += [IMAGE] * (t * h * w) + [0]
    ids = ids[:-1] if end else ids
    return qwen_places(family, torch.tensor(ids), {IMAGE: [list(grid) for grid in grids]}), images


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), video=st.booleans(), end=st.booleans())
def test_some_rows_and_columns_of_an_image_are_a_smaller_image(seed: int, video: bool, end: bool) -> None:
    """Where the tokens that are left make a raster, the positions are those of the dense prompt with that raster."""
    draw = Random(seed)
    grids, smaller, kept = [], [], []
    for _ in range(draw.randint(1, 3)):
        t, h, w = (draw.randint(2, 3), 4, 4) if video else (1, draw.randint(1, 5), draw.randint(1, 5))
        parts = [
            sorted(draw.sample(range(n), draw.randint(1, n) if (axis == 0) == video or not video else n))
            for axis, n in enumerate((t, h, w))
        ]
        grids.append((t, h, w))
        smaller.append((len(parts[0]), len(parts[1]), len(parts[2])))
        kept.append([f * h * w + y * w + x for f in parts[0] for y in parts[1] for x in parts[2]])
    family = "qwen2_5_vl" if video else "qwen2_vl"
    dense, images = mrope(grids, family, end)
    expected, _ = mrope(smaller, family, end)
    row = Row(dense.T.tolist(), images, kept)
    places, flags, _ = batch_of([row], Random(1))
    closed = places.close(flags)
    assert torch.equal(closed.positions[:, 0, flags[0]], expected)
    assert torch.equal(closed.following[:, 0], expected[:, -1] + 1)


def test_a_long_video_does_not_push_the_text_and_neither_does_what_is_left_of_it() -> None:
    dense, images = mrope([(9, 2, 2)], "qwen2_vl", end=False)
    assert dense[:, -1].tolist() == [3, 3, 3], "text follows the rows and columns, not the frames"
    row = Row(dense.T.tolist(), images, [[0, 4, 32]])  # one corner in three frames
    places, flags, _ = batch_of([row], Random(1))
    closed = places.close(flags)
    assert closed.positions[:, 0, flags[0]].tolist() == [[0, 1, 2, 3, 2], [0, 1, 1, 1, 2], [0, 1, 1, 1, 2]]
    assert closed.following[:, 0].tolist() == [3, 3, 3]


def test_tokens_that_a_stage_made_count_on_like_text() -> None:
    dense, images = mrope([(1, 3, 4), (1, 2, 2)], "qwen2_vl", end=False)
    row = Row(dense.T.tolist(), images, [[1, 9], []])  # two rows of one column of the first image
    places, flags, _ = batch_of([row], Random(1))
    made = torch.zeros_like(places.image)
    made[0, images[0][9]] = 2
    closed = places.close(flags, made)
    # word 0; the image at (1, 1, 1) and (1, 2, 1); made ones at 3 and 4; word 5; nothing of the second image; word 6
    assert closed.positions[:, 0, flags[0]].tolist() == [[0, 1, 1, 5, 6], [0, 1, 2, 5, 6], [0, 1, 1, 5, 6]]
    assert int(closed.made[0, images[0][9]]) == 3
    assert closed.following[:, 0].tolist() == [7, 7, 7]
    # At the end of a prompt the next token follows them.
    dense, images = mrope([(1, 3, 4)], "qwen2_vl", end=True)
    places, flags, _ = batch_of([Row(dense.T.tolist(), images, [[1, 9]])], Random(1))
    made = torch.zeros_like(places.image)
    made[0, images[0][9]] = 2
    assert places.close(flags, made).following[:, 0].tolist() == [5, 5, 5]
