"""What is checked of every input, every answer, and the order of stages; knows no strategy."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch

from tokenprune.core.places import InTower, Place, order_of, show_place
from tokenprune.core.signals import GRID, WHOLE_IMAGE, FromDecoder, FromInputs, FromStates, Signal
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.finite import all_finite

Yields = Literal["subset", "merged", "extended", "nothing"]
"""What a stage leaves: some of the tokens; new vectors in their places; some of them and new ones besides; none."""


def check_images(owner: str, needs: Sequence[Signal], batch: Sequence[Tokens]) -> None:
    """Raise unless every image has what is needed, and no number that is read is NaN or infinite.

    Args:
        owner: the class that is to choose.
        needs: signals that it reads.
        batch: the images.

    Raises:
        TypeError: when an image is no `Tokens`.
        ValueError: when a signal is missing, or a tensor holds NaN or infinity.
    """
    values: dict[int, torch.Tensor] = {}  # by identity: the images of a prompt share its text
    names: list[str] = []
    for tokens in batch:
        if not isinstance(tokens, Tokens):
            raise TypeError(f"{owner}: select takes a Tokens, got {type(tokens).__name__}; write Tokens(visual)")
        missing = [signal for signal in needs if signal.required and not tokens.knows(signal)]
        if missing:
            lacking = "; ".join(tokens.lacking(signal) for signal in missing)
            raise ValueError(f"{owner}: {lacking}")
        read = [("visual", tokens.visual), *((signal.name, tokens[signal]) for signal in needs)]
        for name, value in read:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and id(value) not in values:
                values[id(value)] = value
                names.append(name)
    verdicts = all_finite(list(values.values()))
    if not all(verdicts):
        bad = names[verdicts.index(False)]
        raise ValueError(f"{owner}: Tokens.{bad} holds NaN or infinity; find where the model makes it")


@runtime_checkable
class _Stage(Protocol):
    """The attributes of a stage that matter for its neighbours."""

    @property
    def needs(self) -> tuple[Signal, ...]: ...
    @property
    def place(self) -> Place: ...
    @property
    def yields(self) -> Yields: ...


def check_order(stages: Sequence[_Stage]) -> None:
    """Raise unless each stage can run after those before it.

    Raises:
        ValueError: when a stage acts earlier in the model than the one before it, or cannot get what it needs.
    """
    merged_by: _Stage | None = None
    for before, stage in zip([None, *stages[:-1]], stages, strict=True):
        if before is not None:
            _check_pair(before, stage)
        lost = None if merged_by is None else next(filter(_of_original, stage.needs), None)
        if lost is not None:
            raise ValueError(
                f"Pipeline: {stage!r} needs Tokens.{lost} of the original tokens, but {merged_by!r} before it makes "
                f"new ones; put {stage!r} first"
            )
        # What the vision tower merges has its signals read there.
        if stage.yields == "extended" or (stage.yields == "merged" and not isinstance(stage.place, InTower)):
            merged_by = stage


def _check_pair(before: _Stage, stage: _Stage) -> None:
    if WHOLE_IMAGE in stage.needs:
        raise ValueError(f"Pipeline: {stage!r} needs the complete raster of tokens; put it first")
    if before.yields == "nothing":
        raise ValueError(f"Pipeline: {before!r} leaves no visual token to the stages after it; put it last")
    if order_of(stage.place) < order_of(before.place):
        raise ValueError(
            f"Pipeline: {stage!r} acts {show_place(stage.place)}, earlier in the model than the stage before it "
            f"({show_place(before.place)}); order the stages "
            + ("by layer" if type(stage.place) is type(before.place) else "tower, before the decoder, in the decoder")
        )
    if before.yields == "extended" and order_of(stage.place) == order_of(before.place):
        raise ValueError(
            f"Pipeline: {before!r} makes tokens {show_place(before.place)}, about which {stage!r} at the same layer "
            "can know nothing; give it a later layer"
        )


def _of_original(signal: Signal) -> bool:
    """Tell whether a signal is about the original tokens; the decoder's are about whatever tokens get there."""
    if isinstance(signal.source, FromDecoder | FromStates | FromInputs):
        return False
    return (signal.token_axis is not None and signal.required) or signal in (GRID, WHOLE_IMAGE)
