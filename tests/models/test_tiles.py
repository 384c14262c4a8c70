"""Images in tiles: which token shows what, and that signals of the tower stand at the right tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.family_oracle import tiny
from tests.models.oracle import named, of
from tokenprune.models import adapter_for
from tokenprune.models.families.internvl import Run
from tokenprune.testing.tiny.family import FENCE, PART, WHOLE
from tokenprune.testing.tiny.tiles import NEXT_SIZES, next_shape

PROMPTS = ["look at <0> and <1> now", "then <2>", "and <3> last"]
SIGNALS = ("cls_attention", "cls_attention_first", "vision_keys", "vision_states")


def signals(family: str, prompts: list[str]) -> tuple[Any, dict[str, Tensor], Any]:
    model, make_inputs = tiny(family)
    inputs = make_inputs(prompts)
    adapter = adapter_for(model)
    with torch.no_grad():
        return model, inputs, adapter.encode(inputs, named(*adapter.signals))


def patches_of(family: str, pixels: Tensor, layer: int, crop: int) -> dict[str, Tensor]:
    """Signals of every patch, (tiles, patches, e), from the eager tower."""
    base = tiny(family, "eager")[0].model
    tower = base.vision_model if hasattr(base, "vision_model") else base.vision_tower
    keys: dict[int, Tensor] = {}
    modules = [m for m in tower.modules() if type(m).__name__.endswith("Attention")]
    hooks = [
        m.k_proj.register_forward_hook(lambda _, args, out, i=i: keys.update({i: out})) for i, m in enumerate(modules)
    ]
    options = {}
    if family in ("idefics3", "smolvlm"):
        options["patch_attention_mask"] = torch.ones(len(pixels), 8, 8, dtype=torch.bool)
    attention: list[Tensor] = []
    hooks += [m.register_forward_hook(lambda _, args, out: attention.append(out[1])) for m in modules]
    with torch.no_grad():
        output = tower(pixels, output_hidden_states=True, return_dict=True, **options)
    for hook in hooks:
        hook.remove()
    own = family in ("internvl", "idefics3", "smolvlm")  # behind the tower's final norm
    states = output.last_hidden_state if own else output.hidden_states[layer]
    return {
        "cls_attention": attention[layer][:, :, 0, crop:].transpose(1, 2),
        "cls_attention_first": attention[0][:, :, 0, crop:].transpose(1, 2),
        "vision_keys": keys[len(modules) + layer].unflatten(-1, (3, 8)).mean(2)[:, crop:],
        "vision_states": states[:, crop:],
    }


def next_cells(number: int) -> list[tuple[int, int] | None]:
    """(tile, patch) of every token of an image of LLaVA-NeXT, None for newlines, by loops over the padded grid."""
    rows, columns, height, width = next_shape(number)
    top, left = (4 * rows - height) // 2, (4 * columns - width) // 2
    cells: list[tuple[int, int] | None] = [(0, patch) for patch in range(16)]
    for y in range(top, top + height):
        for x in range(left, left + width):
            cells.append((1 + y // 4 * columns + x // 4, y % 4 * 4 + x % 4))
        cells.append(None)
    return cells


def test_llava_next_signals_follow_the_unpadded_tokens() -> None:
    _, inputs, vision = signals("llava_next", PROMPTS)
    seen = set()
    for image in range(4):
        rows, columns, *_ = next_shape(image)
        cells = next_cells(image)
        assert vision.counts[image] == len(cells)
        assert of(vision, "tile_grid")[image] == (rows, columns)
        assert of(vision, "tiles")[image].tolist() == [-1 if cell is None else cell[0] for cell in cells]
        truth = patches_of("llava_next", inputs["pixel_values"][image, : 1 + rows * columns], -2, 1)
        for name in SIGNALS:
            found = of(vision, name)[image]
            found = found.T if name.startswith("cls") else found
            for token, cell in enumerate(cells):
                expected = torch.zeros_like(found[token]) if cell is None else truth[name][cell]
                assert (found[token] - expected).abs().max() <= 1e-5, (name, image, token)
        seen.add((rows, columns))
    assert len(seen) == 3, NEXT_SIZES


def test_onevision_signals_are_interpolated_with_the_tokens() -> None:
    _, inputs, vision = signals("llava_onevision", ["the only <1> here"])
    assert next_shape(1)[:2] == (2, 2)
    truth = patches_of("llava_onevision", inputs["pixel_values"][0], -1, 0)
    height, width = next_shape(1)[2:]
    small = [int(side // (height * width / 32) ** 0.5) for side in (height, width)]
    assert vision.counts == (16 + small[0] * (small[1] + 1),)
    for name in ("vision_keys", "vision_states"):
        grid = truth[name][1:].unflatten(0, (2, 2)).unflatten(2, (4, 4)).permute(5 - 1, 0, 2, 1, 3)
        grid = grid.reshape(-1, 8, 8)[:, (8 - height) // 2 :, (8 - width) // 2 :][:, :height, :width]
        grid = torch.nn.functional.interpolate(grid[None], small, mode="bilinear")[0]
        found = of(vision, name)[0]
        assert (found[:16] - truth[name][0]).abs().max() <= 1e-5
        rows = found[16:].unflatten(0, (small[0], small[1] + 1))
        assert not rows[:, -1].any()
        assert (rows[:, :-1] - grid.permute(1, 2, 0)).abs().max() <= 1e-5
    assert set(of(vision, "tiles")[0].tolist()) == {-1, 0, 1, 2, 3, 4}
    several = signals("llava_onevision", ["two of them <1> <2> here"])[2]
    assert several.counts == (17, 17)
    assert of(several, "tiles")[0].tolist() == [0] * 16 + [-1]


def test_onevision_videos_count_frames() -> None:
    _, inputs, vision = signals("llava_onevision", ["see [0] move"])
    assert of(vision, "tiles")[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1]
    truth = patches_of("llava_onevision", inputs["pixel_values_videos"][0], -1, 0)["vision_states"]
    pooled = truth.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)  # halving: every token is four patches
    assert (of(vision, "vision_states")[0][:-1] - pooled.flatten(0, 1)).abs().max() <= 1e-5
    assert not of(vision, "vision_states")[0][-1].any()


@pytest.mark.parametrize("family", ["internvl", "idefics3", "smolvlm"])
def test_every_token_of_a_tile_is_a_square_of_patches(family: str) -> None:
    _, inputs, vision = signals(family, PROMPTS)
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        pixels = pixels.flatten(0, 1)[(pixels != 0).flatten(2).any(2).flatten()]
    truth = patches_of(family, pixels, -1, int(family == "internvl"))
    assert vision.counts == (16, 48, 16, 32)
    assert of(vision, "tiles")[0] is None
    assert vision.grids == ((4, 4), None, (4, 4), None)
    assert of(vision, "tiles")[1].tolist() == [1] * 16 + [2] * 16 + [0] * 16
    names = [name for name in SIGNALS[:3] if of(vision, name) is not None]
    assert names == (["vision_keys"] if family != "internvl" else list(SIGNALS[:3]))
    for name in names:
        found = torch.cat([image.T if name.startswith("cls") else image for image in of(vision, name)])
        for token in range(len(found)):
            tile, row, column = token // 16, token % 16 // 4, token % 4
            square = [8 * (2 * row + a) + 2 * column + b for a in (0, 1) for b in (0, 1)]
            expected = truth[name][tile, square].mean(0) * (4 if name.startswith("cls") else 1)
            assert (found[token] - expected).abs().max() <= 1e-5, (name, token)
    # What the projector gets holds the same numbers as the patches of the square.
    states = torch.cat(of(vision, "vision_states"))
    first = truth["vision_states"][0, [0, 1, 8, 9]].flatten().sort().values
    torch.testing.assert_close(states[0].sort().values, first)


def test_tiles_of_one_image_are_told_by_the_marks_before_them() -> None:
    adapter = adapter_for(tiny("idefics3")[0])
    images = adapter.images  # type: ignore[attr-defined]

    def split(*marks: tuple[int, int]) -> list[int]:
        ids, runs = [], []
        for fence, mark in marks:
            ids += [fence, mark, 3]
            runs.append(Run(0, len(ids) - 1, 1))
        found: list[int] = images(runs, torch.tensor([ids]))
        return found

    part = (FENCE, PART)
    whole = (FENCE, WHOLE)
    assert split(whole) == [1]
    assert split(whole, whole) == [1, 1]
    assert split(part, (FENCE, PART - 2), whole, whole, part, whole) == [3, 1, 2]
    assert split((7, 8), (9, 8)) == [1, 1], "no common mark: no tiles of one image"
    assert images([Run(0, 0, 2)], torch.tensor([[3, 3]])) == [1, 1]


def test_keys_tell_images_apart_whatever_fills_up_the_batch() -> None:
    for family in ("llava_next", "llava_onevision", "internvl", "idefics3"):
        together = signals(family, ["see <0> so", "see <1> so", "see <4> so"])[2].keys
        alone = [signals(family, [f"other words <{k}> here"])[2].keys[0] for k in (0, 1, 4)]
        assert list(together) == alone
        assert len(set(together)) == 3
