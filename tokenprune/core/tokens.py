"""`Tokens`: the visual tokens of one image, and what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.core.signals import FIELDS, GRID, QUESTION, TEXT, WHOLE_IMAGE, Signal, signal_named
from tokenprune.core.validity import check_new, check_taken, check_tokens


@dataclass(frozen=True, eq=False, init=False)
class Tokens:
    """The visual tokens of one image, with what the prompt and the model can say about them. Immutable.

    Letters in shapes: n visual tokens, m text tokens, d width of the language model.

    Args:
        visual: float (n, d), what would enter the language model (projector output), n >= 1 and d >= 1. This and all
            other floating point tensors are dense, in float16, bfloat16, float32 or float64, on one device.
        text: float (m, d), input embeddings of the prompt's text tokens (no padding, no image placeholders).
        question: bool (m,), True where a text token belongs to the question. Adapters for models mark the text after
            the last image of the prompt.
        grid: (rows, columns) of the image's *original* raster; token i is at row i // columns, column i % columns.
        index: int64 (n,), ascending: original index of each row, when the rows are a subset. None means 0..n-1. Inside
            the decoder a row with an index of `total` or more is a token that an earlier stage made; its `visual` row
            is what was made. What `take` gives has the order of the rows taken.
        total: number of the image's original tokens; the base of every share. None means n.
        signals: what else is known, by signal: `tokens[CLS_ATTENTION]`.
        named: signals by their names, `cls_attention=...`; kept for one release, use `signals`.

    Raises:
        TypeError: when an argument is no tensor of the wanted kind, or no signal has that name.
        ValueError: when shapes, devices or the grid do not fit together, or numbers in `index` or `TILES` are not
            allowed; these are read on the CPU alone, because reading makes the program wait for any other device.

    Examples:
        >>> from tokenprune.core.signals import CLS_ATTENTION
        >>> tokens = Tokens(torch.zeros(6, 4), grid=(2, 3), signals={CLS_ATTENTION: torch.ones(2, 6)})
        >>> tokens.n, tokens.original, tokens[CLS_ATTENTION].shape
        (6, 6, torch.Size([2, 6]))
    """

    visual: Float[Tensor, "n d"]
    text: Float[Tensor, "m d"] | None = None
    question: Bool[Tensor, " m"] | None = None
    grid: tuple[int, int] | None = None
    index: Int[Tensor, " n"] | None = None
    total: int | None = None
    signals: Mapping[Signal, Any] = field(default_factory=dict)

    _ordered: ClassVar[bool] = True
    """Whether `index` must ascend."""

    def __init__(
        self,
        visual: Float[Tensor, "n d"],
        text: Float[Tensor, "m d"] | None = None,
        question: Bool[Tensor, " m"] | None = None,
        grid: tuple[int, int] | None = None,
        *,
        index: Int[Tensor, " n"] | None = None,
        total: int | None = None,
        signals: Mapping[Signal, Any] | None = None,
        **named: Any,  # noqa: ANN401
    ) -> None:
        if signals is not None and not isinstance(signals, Mapping):
            raise TypeError(f"Tokens: signals must map Signal objects to values, got {type(signals).__name__}")
        given = {**(signals or {}), **{signal_named(name): value for name, value in named.items()}}
        known = {signal: value for signal, value in given.items() if value is not None}
        self.__dict__.update(
            visual=visual, text=text, question=question, grid=grid, index=index, total=total, signals=known
        )
        check_tokens(self, ordered=self._ordered)

    @property
    def n(self) -> int:
        """Number of visual tokens here."""
        return self.visual.shape[0]

    @property
    def original(self) -> int:
        """Number of the image's original visual tokens: the base of every share."""
        return self.n if self.total is None else self.total

    @property
    def positions(self) -> Int[Tensor, " n"]:
        """int64 (n,): original index of each row."""
        return torch.arange(self.n, device=self.visual.device) if self.index is None else self.index

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Return a signal by its name, None where it is not known; kept for one release, use `tokens[SIGNAL]`."""
        try:
            return self.__dict__["signals"].get(signal_named(name))
        except (TypeError, KeyError):
            raise AttributeError(f"Tokens has no attribute {name!r}, and no signal is called so") from None

    def knows(self, signal: Signal) -> bool:
        """Tell whether the signal has a value here, its default not counted."""
        return self._find(signal) is not None

    def __getitem__(self, signal: Signal) -> Any:  # noqa: ANN401
        """Return the value of a signal, or its default.

        Raises:
            ValueError: when it is not known and has no default.
        """
        value = self._find(signal)
        if value is not None:
            return value
        if signal.required:
            raise ValueError(f"Tokens: the strategy {self.lacking(signal)}")
        return signal.default

    def lacking(self, signal: Signal) -> str:
        """Say that somebody needs a signal, what is known instead, and the way out."""
        if signal is WHOLE_IMAGE:
            return f"needs the complete raster, got {self.n} of {self.original} tokens; put it first"
        known = ", ".join(sorted(map(repr, self.signals))) or "none"
        way = f"{signal}=..." if signal in FIELDS else f"signals={{{signal.name.upper()}: ...}}"
        return (
            f"needs Tokens.{signal}, which is None (known signals: {known}); pass Tokens(..., {way}) or "
            "choose a strategy that does without"
        )

    @property
    def attached(self) -> bool:
        """True when a gradient can flow back through some tensor here, into the model that it comes from."""
        return any(isinstance(value, Tensor) and value.requires_grad for value in self._values())

    def detached(self) -> "Tokens":
        """Return the same image as plain numbers, through which no gradient flows; itself when none does anyway."""
        if not self.attached:
            return self
        plain = self.changed({signal: _plain(value) for signal, value in self.signals.items()})
        plain.__dict__.update(visual=_plain(self.visual), text=_plain(self.text))
        return plain

    def changed(self, signals: Mapping[Signal, Any]) -> "Tokens":
        """Return the same image with other values of signals, which are known to be sound."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, signals={**self.signals, **signals})
        return part

    def knowing(self, signals: Mapping[Signal, Any]) -> "Tokens":
        """Return the same image with more signals, or others; a value of None takes one away."""
        return replace(self, signals={**self.signals, **signals})

    def take(
        self,
        rows: Int[Tensor, " k"],
        *,
        features: Float[Tensor, "k d"] | None = None,
        extra: Float[Tensor, "c d"] | None = None,
    ) -> "Tokens":
        """Return the same image with only the given rows, in that order; `features` replaces them (merging methods).

        Args:
            rows: int64 (k,), row numbers of *this* bundle, each once, at least one.
            features: float (k, d), new token vectors. Signals with an entry per token are about tokens that no longer
                exist, so they are dropped.
            extra: float (c, d), further token vectors, appended. No signal is known of them, so those with an entry per
                token are dropped.

        Raises:
            TypeError: when an argument is no tensor of the wanted kind.
            ValueError: when rows, features or extra do not fit; numbers in `rows` are read on the CPU alone.
        """
        check_taken(self.visual, rows)
        if features is not None:
            check_new(self.visual, "features", features, rows.shape[0])
        if extra is not None:
            check_new(self.visual, "extra", extra, None)
        return self.take_sound(rows, features=features, extra=extra)

    def take_sound(
        self,
        rows: Int[Tensor, " k"],
        *,
        features: Float[Tensor, "k d"] | None = None,
        extra: Float[Tensor, "c d"] | None = None,
    ) -> "Tokens":
        """Do the same as `take` for arguments that have been checked."""
        index = rows if self.index is None else self.index[rows]  # (k,)
        visual = self.visual.index_select(0, rows) if features is None else features  # (k, d)
        if extra is not None and extra.shape[0]:
            first = (index[-1:] + 1).clamp_min(self.original)
            index = torch.cat([index, first + torch.arange(extra.shape[0], device=index.device)])  # (k + c,)
            visual = torch.cat([visual, extra])  # (k + c, d)
        new = features is not None or visual.shape[0] > rows.shape[0]
        signals = {}
        for signal, value in self.signals.items():
            axis = signal.token_axis
            if axis is None:
                signals[signal] = value
            elif not new:
                signals[signal] = value.index_select(axis, rows)
        # Rows of sound tokens are sound: no need to look at them again.
        part = object.__new__(_TakenTokens)
        part.__dict__.update(self.__dict__, index=index, total=self.original, visual=visual, signals=signals)
        return part

    def _values(self) -> list[Any]:
        return [self.visual, self.text, *self.signals.values()]

    def _find(self, signal: Signal) -> Any:  # noqa: ANN401
        if signal in FIELDS:
            whole = True if self.n == self.original else None
            return {TEXT: self.text, QUESTION: self.question, GRID: self.grid, WHOLE_IMAGE: whole}[signal]
        return self.signals.get(signal)


class _TakenTokens(Tokens):
    """What `Tokens.take` gives: the rows may be in any order."""

    _ordered = False


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.detach() if isinstance(value, Tensor) else value
