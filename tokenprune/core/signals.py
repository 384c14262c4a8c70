"""`Signal`: something that can be said about an image's tokens, declared once, by whoever reads it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import LARGEST, brief


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""Default of a signal that must be known: without it no strategy that reads the signal can run."""


_by_name: dict[str, "Signal"] = {}


@runtime_checkable
class Attended(Protocol):
    """One attention module at work, as one image sees it: what signals of the tower and the decoder are computed from.

    Letters in shapes: h query heads, g key heads (h is a multiple of g), k slots of the sequence, e width of a head,
    n tokens of the image, t text tokens after it.

    Attributes:
        image: int64 (n,), slots of the image's tokens.
        text: int64 (t,), slots of the prompt's text after the image; empty in a vision tower.
        last: int64 (1,), slot of the prompt's last token; in a vision tower that of the CLS token.
    """

    image: Int[Tensor, " n"]
    text: Int[Tensor, " t"]
    last: Int[Tensor, " 1"]

    @property
    def keys(self) -> Float[Tensor, "g k e"]:
        """Keys after rotary embedding."""

    @property
    def queries(self) -> Float[Tensor, "h k e"]:
        """Queries after rotary embedding."""

    def rows(self, of: Int[Tensor, " q"]) -> Float[Tensor, "h q n"]:
        """Attention from the given slots to the image: softmax over all that they see, in float32."""


@runtime_checkable
class States(Protocol):
    """Output of the decoder layer before a stage, as one image sees it.

    Attributes:
        image: int64 (n,), slots of the image's tokens.
        text: int64 (t,), slots of the prompt's text after the image.
    """

    image: Int[Tensor, " n"]
    text: Int[Tensor, " t"]

    @property
    def hidden(self) -> Float[Tensor, "k d"]:
        """The output as it is."""

    @property
    def normed(self) -> Float[Tensor, "k d"]:
        """The output after the language model's final norm."""


@runtime_checkable
class Entered(Protocol):
    """What entered the language model, as one image sees it.

    Attributes:
        image: float (o, d), all visual tokens of the image that entered, also those dropped since.
        text: float (t, d), input embeddings of the prompt's text after the image.
    """

    image: Float[Tensor, "o d"]
    text: Float[Tensor, "t d"]


@runtime_checkable
class TowerRows(Protocol):
    """The vision tower's rows that the projector gets, as one image sees them.

    Attributes:
        image: int64 (n,), rows of the image's tokens.
        last: int64 (1,), row of the CLS token.
        states: float (k, c), the rows.
    """

    image: Int[Tensor, " n"]
    last: Int[Tensor, " 1"]
    states: Float[Tensor, "k c"]


@dataclass(frozen=True)
class FromTower:
    """Read an attention module of the vision tower.

    Args:
        layer: "used" for the layer whose output the model uses (LLaVA-1.5: the last but one), or a number; negative
            numbers count from the end.
        read: from the module at work to the value for one image.
        cls: True when it is about the CLS token, which not every tower has.
    """

    layer: int | Literal["used"]
    read: Callable[[Attended], Tensor]
    cls: bool = False


@dataclass(frozen=True)
class FromProjector:
    """Read what the projector gets from the vision tower.

    Args:
        read: from those rows to the value for one image.
        cls: True when it is about the CLS token, which not every tower has.
    """

    read: Callable[[TowerRows], Tensor]
    cls: bool = False


@dataclass(frozen=True)
class FromDecoder:
    """Read an attention module of the language model.

    Args:
        read: from the module at work to the value for one image.
        layer: -1 for the layer before the stage's, which has run; 0 for the stage's own, as it would run if nothing
            were dropped.
    """

    read: Callable[[Attended], Tensor]
    layer: Literal[-1, 0] = -1


@dataclass(frozen=True)
class FromStates:
    """Read the output of the decoder layer before the stage.

    Args:
        read: from that output to the value for one image.
    """

    read: Callable[[States], Tensor]


@dataclass(frozen=True)
class FromInputs:
    """Read what entered the language model.

    Args:
        read: from that to the value for one image.
    """

    read: Callable[[Entered], Tensor]


Source: TypeAlias = FromTower | FromProjector | FromDecoder | FromStates | FromInputs


@dataclass(frozen=True, eq=False)
class Signal:
    """Something that can be said about an image's tokens.

    Two signals are the same when all their parts but the default are. Declare one at the top of a module, beside the
    method that reads it; nothing else needs to know of it.

    Args:
        name: what errors and tables call it.
        axes: a word or number per axis, separated by blanks. An axis `n` has one entry per visual token, `d` is the
            language model's width, `m` the number of text tokens; another word has one size per image, whichever
            signal it is in; `_` has any size. "" for what is no tensor.
        source: how a model supplies it; None when the prompt, the processor or the caller does.
        merged: what becomes of it in the vision tower when tokens merge: "sum" for attention, "mean" for states and
            keys.
        default: its value where it is not known; `REQUIRED` for none.
        dtype: of the tensor; None for any floating point type.
        check: of a value, what is wrong with it, or None; asked when `Tokens` are made.
        example: for tests, from the number of tokens and a seed to a value; needed where the axes do not tell enough.

    Raises:
        ValueError: when the axes name `n` twice, or a signal that is no tensor has a source.

    Examples:
        >>> Signal("my_attention", "_ n", FromDecoder(lambda seen: seen.rows(seen.last)[:, 0])).token_axis
        1
    """

    name: str
    axes: str
    source: Source | None = None
    merged: Literal["sum", "mean"] = "mean"
    default: Any = REQUIRED
    dtype: torch.dtype | None = None
    check: Callable[[Any], str | None] | None = None
    example: Callable[[int, int], Any] | None = None
    _key: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.name or self.axes.split().count("n") > 1 or (self.source is not None and not self.axes):
            raise ValueError(
                f"Signal: name={self.name!r}, axes={self.axes!r}: a signal has a name, `n` at most once among its "
                "axes, and axes when a model is to supply it"
            )
        parts = (self.name, self.axes, self.source, self.merged, self.dtype, self.check, self.example)
        object.__setattr__(self, "_key", parts)
        if _by_name.get(self.name) != self:
            _by_name[self.name] = self

    @property
    def shape(self) -> tuple[str, ...]:
        """The axes one by one; () for what is no tensor."""
        return tuple(self.axes.split())

    @property
    def token_axis(self) -> int | None:
        """The axis with one entry per visual token, if there is one."""
        return self.shape.index("n") if "n" in self.shape else None

    @property
    def required(self) -> bool:
        """True when it has no default."""
        return self.default is REQUIRED

    def at(self, layer: int) -> "Signal":
        """Name the same signal at another layer of the vision tower.

        Args:
            layer: the layer, from 0; negative numbers count from the end.

        Raises:
            ValueError: when the signal is not read in the vision tower.

        Examples:
            >>> CLS_ATTENTION.at(-1)
            cls_attention.at(-1)
        """
        if not isinstance(self.source, FromTower):
            raise ValueError(f"Signal: {self.name} is not read in the vision tower, so it has no layer {layer}")
        name = f"{self.name.partition('.at(')[0]}.at({layer})"
        return replace(self, name=name, source=replace(self.source, layer=layer))

    def strict(self) -> "Signal":
        """Return the same signal without its default, for the `needs` of a method that cannot do without."""
        return replace(self, default=REQUIRED)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signal) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name


def _key(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        what = f"got {brief(value)} of type {type(value).__name__}; convert it with int()"
        return f"must be None or an int that identifies the image, {what}"
    return None


def _count(value: object) -> str | None:
    wanted = "must be None or an int of at least 0"
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{wanted}, got {brief(value)} of type {type(value).__name__}; convert it with int()"
    return None if 0 <= value < LARGEST else f"{wanted} and below 2**53, got {brief(value)}"


def wrong_pair(value: object) -> str | None:
    """Say what is wrong with a value that must be a tuple of two positive ints, or None."""
    wanted = "must be a tuple (rows, columns) of two positive ints"
    if not isinstance(value, tuple) or any(isinstance(part, bool) or not isinstance(part, int) for part in value):
        return f"{wanted}, got {brief(value)} of type {type(value).__name__}"
    if len(value) != 2 or not all(0 < part < LARGEST for part in value):
        return f"{wanted}, got {brief(value)}"
    return None


def _rows(value: Tensor) -> str | None:
    return None if value.shape[0] else "has no rows; give one for each segment of the prompt, or None"


def _callable(value: object) -> str | None:
    if callable(value):
        return None
    return f"must be a function of a tensor, got {brief(value)} of type {type(value).__name__}"


TEXT = Signal("text", "m d")
"""`Tokens.text`, for methods that cannot do without."""
QUESTION = Signal("question", "m", dtype=torch.bool)
"""`Tokens.question`, likewise."""
GRID = Signal("grid", "")
"""`Tokens.grid`, likewise."""
WHOLE_IMAGE = Signal("whole_image", "")
"""Known (True) while every token of the image is there: a method that needs it comes first."""
FIELDS = frozenset({TEXT, QUESTION, GRID, WHOLE_IMAGE})
"""Signals that `Tokens` knows from its own fields."""

IMAGE_KEY = Signal("key", "", default=0, check=_key, example=lambda n, seed: seed)
"""An int that identifies the image and nothing else (not its batch, order or dtype), so that a seeded random strategy
draws differently for different images yet the same in any batch."""
PROMPT_NUMBER = Signal("prompt", "", default=None, check=_count)
"""Which prompt of the batch the image belongs to, for budgets that the images of a prompt share."""
TILES = Signal("tiles", "n", default=None, dtype=torch.int64, example=lambda n, seed: torch.arange(n) * 3 // n)
"""For images that the model sees in tiles: number of each token's tile. Tile 0 is the whole image (where the model
makes one), 1, 2, ... its parts in raster order; for a video they are its frames, from 0. Tokens that end a row of
tokens and show nothing (newlines) have -1."""
TILE_GRID = Signal("tile_grid", "", default=None, check=wrong_pair, example=lambda n, seed: (1, 2))
"""(rows, columns) of the tiles 1, 2, ..."""

_CLS_ROW = FromTower("used", lambda seen: seen.rows(seen.last)[:, 0], cls=True)
CLS_ATTENTION = Signal("cls_attention", "_ n", _CLS_ROW, merged="sum")
"""Attention of the vision tower's CLS token (or mean query) to the visual tokens."""
VISION_STATES = Signal("vision_states", "n c", FromProjector(lambda seen: seen.states[seen.image]))
"""Hidden states of the vision tower that the projector gets."""
VISION_KEYS = Signal("vision_keys", "n _", FromTower("used", lambda seen: seen.keys.mean(0)[seen.image]))
"""Attention keys of the vision tower, averaged over heads."""
PROJECT = Signal("project", "", check=_callable, example=lambda n, seed: torch.tanh)
"""The model's projector, a function of rows like those of `VISION_STATES`; for methods that merge before it."""
CLIP_VISUAL = Signal("clip_visual", "n clip")
"""Each token's `VISION_STATES` row carried into CLIP's joint space (final layer norm, projection), not normalised."""
CLIP_TEXT = Signal("clip_text", "_ clip", check=_rows)
"""CLIP text embeddings of the prompt, one row per segment, not normalised."""
TOWER_SIZE = Signal("tower_size", "1 n", default=None, merged="sum")
"""After a vision tower that merged patches: how many each token is made of, 0 for those that went into another."""

DECODER_ATTENTION = Signal("decoder_attention", "_ n", FromDecoder(lambda seen: seen.rows(seen.last)[:, 0]))
"""Attention of the prompt's last token to the visual tokens, in the layer before the stage."""
DECODER_TEXT_ATTENTION = Signal("decoder_text_attention", "t n", FromDecoder(lambda seen: seen.rows(seen.text).mean(0)))
"""Mean over heads of the attention of the text after the image, in the layer before the stage."""
DECODER_HIDDEN = Signal("decoder_hidden", "n d", FromStates(lambda seen: seen.hidden[seen.image]))
"""Output of the decoder layer before the stage."""
DECODER_ENTERED = Signal("decoder_entered", "_ d", FromInputs(lambda seen: seen.image))
"""What entered the language model of this image, also what has been dropped since."""
DECODER_TEXT = Signal("decoder_text", "t d", FromInputs(lambda seen: seen.text))
"""Input embeddings of the prompt's text after the image."""

_by_name.update(cls_attention_first=CLS_ATTENTION.at(0), cls_attention_last=CLS_ATTENTION.at(-1))


def declared() -> list[Signal]:
    """Return the signals that imported modules declare, and those at layers that they name."""
    return list(dict.fromkeys(_by_name.values()))


def signal_named(name: str) -> Signal:
    """Find a declared signal by its name, for `Tokens(..., cls_attention=...)`.

    Raises:
        TypeError: when none is called so; the module that declares it may not have been imported.
    """
    if name not in _by_name:
        raise TypeError(
            f"Tokens: unexpected argument {name!r}; no signal of that name has been declared "
            "(import the module of the method that reads it, and write signals={THE_SIGNAL: ...})"
        )
    return _by_name[name]
