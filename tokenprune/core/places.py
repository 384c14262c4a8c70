"""Where in the model a stage acts."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Positions = Literal["original", "compact"]
"""How the positions of the kept tokens are made: "compact" renumbers the shorter prompt, "original" keeps those of the
full one."""


@dataclass(frozen=True)
class InTower:
    """Between the layers of the vision tower.

    Args:
        after: "attention" acts between a layer's attention and its feed-forward part, "layer" after the whole layer.
        weighted: True to add log(size) to the attention logits of the layers that follow a merge.
        positions: see `Positions`.
    """

    after: Literal["attention", "layer"] = "attention"
    weighted: bool = False
    positions: Positions = "compact"


@dataclass(frozen=True)
class BeforeDecoder:
    """Between the projector and the language model.

    Args:
        positions: see `Positions`.
    """

    positions: Positions = "compact"


@dataclass(frozen=True)
class InDecoder:
    """Between two layers of the language model.

    Args:
        layer: the first decoder layer that gets fewer tokens, counted from 0; at least 1.
        positions: see `Positions`.
        mid_layer: True to drop within layer `layer` - 1, between attention and feed-forward, so that `layer` may be the
            number of layers. The tokens that reach layer `layer` are the same.
    """

    layer: int
    positions: Positions = "original"
    mid_layer: bool = False


Place: TypeAlias = InTower | BeforeDecoder | InDecoder

_ORDER = (InTower, BeforeDecoder, InDecoder)


def order_of(place: Place) -> tuple[int, int]:
    """Sort places by the route of an image through the model: (part of the model, layer).

    Examples:
        >>> order_of(BeforeDecoder()) < order_of(InDecoder(2)) < order_of(InDecoder(8))
        True
    """
    return _ORDER.index(type(place)), place.layer if isinstance(place, InDecoder) else 0


def show_place(place: Place) -> str:
    """Say where a place is, as errors print it.

    Examples:
        >>> show_place(InDecoder(2))
        'at decoder layer 2'
    """
    if isinstance(place, InDecoder):
        return f"at decoder layer {place.layer}"
    return "in the vision tower" if isinstance(place, InTower) else "before the decoder"
