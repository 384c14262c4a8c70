"""Stages "vision-4", "vision-8", "vision-16": the tower learns to read cards, on windows that grow to the full image.

Every patch has labels (its card's digit and colour, its region), read from the layer that the projector will use. The
CLS token has an image-level label (which digits and colours are in sight), read from the last layer, so that CLS
attention means something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.bundled_model.architecture import WIDTH
from tokenprune.bundled.cards import CARD, GRID, PATCH, Card, lay_out, patch_region
from tokenprune.bundled.render import render
from tokenprune.bundled.tokenizer import MEAN, STD
from tokenprune.bundled.vocabulary import COLOURS, DIGITS, REGIONS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

NO_DIGIT: Final = len(DIGITS)
NO_COLOUR: Final = len(COLOURS)
_REGION_OF_PATCH: Final = np.array([patch_region(patch) for patch in range(GRID * GRID)])


class VisionHeads(nn.Module):
    """Linear read-outs that exist in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Linear(WIDTH, len(DIGITS) + 1)
        self.colour = nn.Linear(WIDTH, len(COLOURS) + 1)
        self.region = nn.Linear(WIDTH, len(REGIONS))
        self.image = nn.Linear(WIDTH, len(DIGITS) + len(COLOURS))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A batch of windows with labels.

    Attributes:
        pixels: (b, 3, 8 w, 8 w) normalised pixels of windows of w x w patches.
        patches: (b, w * w) row-major indices of the window's patches in the full grid.
        digit: (b, w * w) 0 to 9, or 10 for no card.
        colour: (b, w * w) index of the colour word, or 8 for no card.
        region: (b, w * w) index of the region word.
        present: (b, 18) which digits and colours cover at least one patch of the window, 0 or 1.
    """

    pixels: Tensor
    patches: Tensor
    digit: Tensor
    colour: Tensor
    region: Tensor
    present: Tensor


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """(b, h, w, 3) pixels from 0 to 255 to (b, 3, h, w) floats, as the saved image processor does."""
    pixels = torch.from_numpy(images.astype(np.float32)) / 255.0
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def patch_labels(cards: Sequence[Card]) -> NDArray[np.int64]:
    """Labels of all patches of a scene: (256, 2), digit and colour."""
    labels = np.empty((GRID * GRID, 2), dtype=np.int64)
    labels[:] = NO_DIGIT, NO_COLOUR
    names = tuple(COLOURS)
    for card in cards:
        labels[list(card.patches)] = card.digit, names.index(card.colour)
    return labels


def windows(
    scenes: Sequence[tuple[Sequence[Card], NDArray[np.uint8]]], side: int, per_scene: int, rng: np.random.Generator
) -> Labelled:
    """Cut windows that show a whole card out of rendered scenes.

    Args:
        scenes: cards and (128, 128, 3) pixels.
        side: window side in patches; 16 is the whole image.
        per_scene: windows per scene.
        rng: source of randomness.
    """
    crops, where, labels = [], [], []
    grid = np.arange(GRID * GRID).reshape(GRID, GRID)
    for cards, pixels in scenes:
        known = patch_labels(cards)
        for _ in range(per_scene):
            x0, y0, _, _ = (edge // PATCH for edge in cards[int(rng.integers(len(cards)))].box)
            # The chosen card is wholly in sight; a part of a digit cannot be read and would only add noise.
            left, top = (int(np.clip(start - rng.integers(side - CARD + 1), 0, GRID - side)) for start in (x0, y0))
            crops.append(pixels[top * PATCH : (top + side) * PATCH, left * PATCH : (left + side) * PATCH])
            own = grid[top : top + side, left : left + side].reshape(-1)
            where.append(own)
            labels.append(known[own])
    patches, both = np.stack(where), np.stack(labels)
    digit, colour = torch.from_numpy(both[:, :, 0]), torch.from_numpy(both[:, :, 1])
    hot_digit = nn.functional.one_hot(digit, NO_DIGIT + 1).amax(1)[:, :NO_DIGIT]
    hot_colour = nn.functional.one_hot(colour, NO_COLOUR + 1).amax(1)[:, :NO_COLOUR]
    return Labelled(
        pixels=normalise(np.stack(crops)),
        patches=torch.from_numpy(patches),
        digit=digit,
        colour=colour,
        region=torch.from_numpy(_REGION_OF_PATCH[patches]),
        present=torch.cat([hot_digit, hot_colour], dim=1).float(),
    )


def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Run the vision tower on windows, with the positions that the patches have in the full image.

    Args:
        model: the model.
        pixels: (b, 3, 8 w, 8 w).
        patches: (b, w * w) indices in the full grid.

    Returns:
        Patch features (b, w * w, d) of the layer that the projector reads, and the final CLS token (b, d). For the full
        image they are what the Hugging Face forward pass computes.
    """
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    content = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2) + embeddings.position_embedding(patches + 1)
    first = (embeddings.class_embedding + embeddings.position_embedding.weight[0]).expand(len(pixels), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first, content], dim=1))
    layers = tower.encoder.layers
    for layer in layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    last = layers[-1](hidden, attention_mask=None)
    return hidden[:, 1:], tower.post_layernorm(last[:, 0])


def auxiliary_losses(
    heads: VisionHeads, features: Tensor, cls: Tensor, batch: Labelled
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Losses of the patch labels and of the image-level label, with accuracies for the log."""
    card = batch.digit != NO_DIGIT
    digit, colour, region = heads.digit(features), heads.colour(features), heads.region(features)
    entropy = nn.functional.cross_entropy
    losses = {
        # Card patches and background patches weigh the same in sum: most patches are background.
        "digit": entropy(digit[card], batch.digit[card]) + 0.5 * entropy(digit.flatten(0, 1), batch.digit.flatten()),
        "colour": entropy(colour[card], batch.colour[card])
        + 0.5 * entropy(colour.flatten(0, 1), batch.colour.flatten()),
        "region": entropy(region.flatten(0, 1), batch.region.flatten()),
        "image": nn.functional.binary_cross_entropy_with_logits(heads.image(cls), batch.present),
    }
    with torch.no_grad():
        figures = {
            "patch_digit": float((digit[card].argmax(-1) == batch.digit[card]).float().mean()),
            "patch_colour": float((colour[card].argmax(-1) == batch.colour[card]).float().mean()),
            "patch_card": float(((digit.argmax(-1) == NO_DIGIT) != card).float().mean()),
            "patch_region": float((region.argmax(-1) == batch.region).float().mean()),
            "image_label": float(((heads.image(cls) > 0) == (batch.present > 0.5)).float().mean()),
        }
    return losses, figures


def draw_scenes(
    rng: np.random.Generator, count: int, split: str = "train"
) -> list[tuple[tuple[Card, ...], NDArray[np.uint8]]]:
    """Fresh scenes, cards and pixels."""
    scenes = []
    for _ in range(count):
        cards = lay_out(rng)
        scenes.append((cards, render(cards, split, rng)))
    return scenes


def vision_loss(
    model: LlavaForConditionalGeneration,
    heads: VisionHeads,
    rng: np.random.Generator,
    progress: float,
    *,
    side: int,
    scenes: int,
    per_scene: int,
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss of the tower on fresh training windows of ``side`` x ``side`` patches."""
    batch = windows(draw_scenes(rng, scenes), side, per_scene, rng)
    features, cls = tower_features(model, batch.pixels, batch.patches)
    losses, figures = auxiliary_losses(heads, features, cls, batch)
    return losses["digit"] + losses["colour"] + 0.3 * losses["region"] + losses["image"], figures


@torch.no_grad()
def vision_accuracy(
    model: LlavaForConditionalGeneration, heads: VisionHeads, *, side: int, scenes: int = 60
) -> dict[str, float]:
    """Accuracies on windows of validation scenes, the same ones at every call."""
    rng = np.random.default_rng(1)
    batch = windows(draw_scenes(rng, scenes, "validation"), side, 1, rng)
    features, cls = tower_features(model, batch.pixels, batch.patches)
    _, figures = auxiliary_losses(heads, features, cls, batch)
    return {f"validation_{name}": value for name, value in figures.items()}
