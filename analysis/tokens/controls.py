"""Which confounders a comparison of visual with text tokens takes out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Which confounders a comparison of visual and text tokens takes out, in this order.

    Args:
        unique: drop repeated vectors first (a word that occurs twice has one embedding twice).
        equal_counts: subsample the larger side to the size of the smaller one, since more tokens have more neighbours
            and a smaller rank per token.
        unit: scale every token to length 1, so that the spread of norms does not rule the spectrum.
        centre: subtract the mean token of each side, since a common direction makes all cosines large.
        draws: subsamples that are averaged.
        seed: of the subsamples; the draw of an image depends on its id, not on the order of images.

    Raises:
        ValueError: when draws is not positive.
    """

    unique: bool = True
    equal_counts: bool = True
    unit: bool = True
    centre: bool = True
    draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"Controls: draws must be 1 or more, got {self.draws}; 8 is a good number")

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        parts = {"unique": self.unique, "equal counts": self.equal_counts, "unit": self.unit, "centred": self.centre}
        return ", ".join(name for name, used in parts.items() if used) or "as they are"


NO_CONTROLS = Controls(unique=False, equal_counts=False, unit=False, centre=False, draws=1)
"""The tokens as they are."""
