"""`Tokens`, what a strategy sees of one image, and `Selection`, what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.token_checks import check_matrix, check_numbers, check_place, check_taken, show

TEXT_FIELDS = frozenset({"text", "question", "clip_text"})
"""Fields that belong to the prompt, not to single visual tokens: they survive subsetting and merging unchanged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StageCount:
    """One stage of a pipeline: `tokens_in` tokens came, `tokens_out` were kept, `made` new ones stand behind them."""

    stage: str
    tokens_in: int
    tokens_out: int
    made: int = 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """The visual tokens of one image, with what the prompt and the model can tell about them. Immutable.

    Letters in shapes: n visual tokens, m text tokens, d width of the language model, h attention heads, c width of the
    vision tower, p width of CLIP's joint space.

    Attributes:
        visual: float (n, d), what would enter the language model (projector output), n >= 1 and d >= 1. This and all
            other floating point fields are dense, in float16, bfloat16, float32 or float64, on one device.
        text: float (m, d), input embeddings of the prompt's text tokens (no padding, no image placeholders).
        question: bool (m,), True where a text token belongs to the question. Adapters for models mark the text after
            the last image of the prompt.
        grid: (rows, columns) of the image's *original* raster; token i stands at row i // columns, column i % columns.
        tiles: int64 (n,), for images that the model sees in tiles: number of the tile that each token belongs to.
            Tile 0 is the whole image (where the model makes one), 1, 2, ... its parts in raster order; for a video
            they are its frames, from 0. Tokens that end a row of tokens and show nothing (newlines) have -1.
            None: one tile.
        tile_grid: (rows, columns) of the tiles 1, 2, ..., where it is known.
        index: int64 (n,), ascending: original index of each row, when the rows are a subset. None means 0..n-1. Inside
            the decoder a row with an index of `total` or more is a token that an earlier stage made; its `visual` row
            is what was made. What `take` gives has the order of the rows taken.
        total: number of the image's original tokens; the base of every share. None means n.
        key: an int that identifies the image and nothing else (not its batch, order or dtype), so that a seeded random
            strategy draws differently for different images yet the same in any batch.
        prompt: which prompt of the batch the image belongs to, for budgets that the images of a prompt share; None for
            an image that is alone.
        cls_attention: float (h, n), attention of the vision tower's CLS token (or mean query) to the visual tokens, in
            the layer whose output the model uses (LLaVA-1.5: the last but one).
        cls_attention_first: float (h, n), the same in the tower's first layer.
        vision_states: float (n, c), hidden states of the vision tower that the projector gets, a row per visual token.
        vision_cls: float (1, c), the CLS token's row beside `vision_states`.
        vision_keys: float (n, e), attention keys of that layer averaged over heads, one row per visual token.
        vision_last_keys: float (n, c), output of the key projection of the tower's *last* layer, heads side by side.
        vision_last_cls: float (2, c), the CLS token's query and its key in that last layer, all heads side by side.
        cls_attention_last: float (h, n), attention of the CLS token in that last layer.
        clip_visual: float (n, p), each token's `vision_states` row carried into CLIP's joint space (final layer norm,
            visual projection), not normalised.
        clip_text: float (s, p), CLIP text embeddings of the prompt, one row per segment, not normalised.
        tower_size: float (1, n), behind a vision tower that merged patches: how many patches each token stands for, 0
            for those that were merged into another.
        decoder_attention: float (h, n), for stages inside the language model that act at layer K: attention of the
            prompt's last token to the visual tokens, in layer K - 1.
        decoder_next_attention: float (h, n), the same for layer K, as it would be if nothing were dropped there.
        decoder_keys: float (n, e), keys of layer K - 1 after rotary embedding, heads side by side.
        decoder_states: float (n, d), output of layer K - 1 behind the language model's final norm.
        decoder_hidden: float (n, d), output of layer K - 1 as it is.
        decoder_text_attention: float (t, n), mean over heads of the attention of the prompt's text behind the image to
            the visual tokens, in layer K - 1.
        decoder_peaks: float (2, n), column sums of the maximum over heads of the attention in layer K - 1: over the
            rows of this image's tokens, divided by n, and over those of the text behind the image.
        decoder_entered: float (o, d), what entered the language model of this image, also what has been dropped since.
        decoder_text: float (t, d), input embeddings of the prompt's text behind the image.
        decoder_text_keys: float (t, e), such keys of the prompt's text behind the image.
        decoder_text_states: float (t, d), such states of the prompt's text behind the image.
        project: the model's projector, a function that maps rows like those of `vision_states` (k, c) to (k, d); for
            methods that make new tokens before the projector.

    Raises:
        TypeError: when a field is no tensor of the wanted kind, or no int.
        ValueError: when shapes, devices or the grid do not fit together, or numbers in `index` or `tiles` are not
            allowed; these are read on the CPU alone, because reading makes the program wait for any other device.

    Examples:
        >>> tokens = Tokens(torch.zeros(6, 4), grid=(2, 3))
        >>> tokens.n, tokens.original
        (6, 6)
    """

    visual: Float[Tensor, "n d"]
    text: Float[Tensor, "m d"] | None = None
    question: Bool[Tensor, " m"] | None = None
    grid: tuple[int, int] | None = None
    tiles: Int[Tensor, " n"] | None = None
    tile_grid: tuple[int, int] | None = None
    index: Int[Tensor, " n"] | None = None
    total: int | None = None
    key: int | None = None
    prompt: int | None = None
    cls_attention: Float[Tensor, "h n"] | None = None
    cls_attention_first: Float[Tensor, "h n"] | None = None
    vision_states: Float[Tensor, "n c"] | None = None
    vision_keys: Float[Tensor, "n e"] | None = None
    vision_cls: Float[Tensor, "1 c"] | None = None
    vision_last_keys: Float[Tensor, "n f"] | None = None
    vision_last_cls: Float[Tensor, "2 f"] | None = None
    cls_attention_last: Float[Tensor, "h n"] | None = None
    clip_visual: Float[Tensor, "n p"] | None = None
    clip_text: Float[Tensor, "s p"] | None = None
    tower_size: Float[Tensor, "1 n"] | None = None
    decoder_attention: Float[Tensor, "h n"] | None = None
    decoder_next_attention: Float[Tensor, "h n"] | None = None
    decoder_keys: Float[Tensor, "n e"] | None = None
    decoder_states: Float[Tensor, "n d"] | None = None
    decoder_hidden: Float[Tensor, "n d"] | None = None
    decoder_text_attention: Float[Tensor, "t n"] | None = None
    decoder_peaks: Float[Tensor, "2 n"] | None = None
    decoder_entered: Float[Tensor, "o d"] | None = None
    decoder_text: Float[Tensor, "t d"] | None = None
    decoder_text_keys: Float[Tensor, "t e"] | None = None
    decoder_text_states: Float[Tensor, "t d"] | None = None
    project: Callable[[Tensor], Tensor] | None = None

    _ordered: ClassVar[bool] = True
    """Whether `index` must ascend."""

    def __post_init__(self) -> None:
        _check_tokens(self)

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

    @property
    def attached(self) -> bool:
        """True when a gradient can flow back through some tensor here, into the model that it comes from."""
        return any(isinstance(value, Tensor) and value.requires_grad for value in vars(self).values())

    def detached(self) -> "Tokens":
        """The same image as plain numbers, through which no gradient flows; itself when none does anyway."""
        found = {k: v.detach() for k, v in vars(self).items() if isinstance(v, Tensor) and v.requires_grad}
        if not found:
            return self
        plain = object.__new__(type(self))
        plain.__dict__.update(self.__dict__, **found)
        return plain

    def projecting_by(self, project: Callable[[Tensor], Tensor]) -> "Tokens":
        """The same image with another `project`."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, project=project)
        return part

    def take(
        self,
        rows: Int[Tensor, " k"],
        *,
        features: Float[Tensor, "k d"] | None = None,
        extra: Float[Tensor, "c d"] | None = None,
    ) -> "Tokens":
        """The same image with only the given rows, in that order; `features` replaces them (merging methods).

        Args:
            rows: int64 (k,), row numbers of *this* bundle, each once, at least one.
            features: float (k, d), new token vectors. The other per-token signals describe tokens that no longer
                exist, so they are dropped.
            extra: float (c, d), further token vectors that stand behind. No signal tells of them, so the other
                per-token signals are dropped.

        Raises:
            TypeError: when an argument is no tensor of the wanted kind.
            ValueError: when rows, features or extra do not fit; numbers in `rows` are read on the CPU alone.
        """
        check_taken(self, rows)
        for name, value in (("features", features), ("extra", extra)):
            if value is not None:
                _check_made(self, name, value, rows.shape[0] if name == "features" else None)
        return self._take(rows, features=features, extra=extra)

    def _take(
        self,
        rows: Int[Tensor, " k"],
        *,
        features: Float[Tensor, "k d"] | None = None,
        extra: Float[Tensor, "c d"] | None = None,
    ) -> "Tokens":
        """`take` for arguments that are known to be sound."""
        index = rows if self.index is None else self.index[rows]
        visual = self.visual.index_select(0, rows) if features is None else features
        if extra is not None and extra.shape[0]:
            first = (index[-1:] + 1).clamp_min(self.original)
            index = torch.cat([index, first + torch.arange(extra.shape[0], device=index.device)])
            visual = torch.cat([visual, extra])
        changes: dict[str, object] = {"index": index, "total": self.original, "visual": visual}
        new = features is not None or visual.shape[0] > rows.shape[0]
        for name in ("tiles", *PER_TOKEN_SIGNALS):
            value = getattr(self, name)
            if value is not None:
                changes[name] = None if new else value.index_select(_token_axis(name), rows)
        # Rows of sound tokens are sound: no need to look at them again.
        part = object.__new__(_TakenTokens)
        part.__dict__.update(self.__dict__, **changes)
        return part


class _TakenTokens(Tokens):
    """What `Tokens.take` gives: the rows may be in any order."""

    _ordered = False


DECODER_SIGNALS = (
    "decoder_attention",
    "decoder_next_attention",
    "decoder_keys",
    "decoder_states",
    "decoder_hidden",
    "decoder_text_attention",
    "decoder_peaks",
    "decoder_entered",
    "decoder_text",
    "decoder_text_keys",
    "decoder_text_states",
)
"""Fields that only a stage inside the language model can get."""

PER_TOKEN_SIGNALS = (
    "tower_size",
    "cls_attention",
    "cls_attention_first",
    "vision_states",
    "vision_keys",
    "vision_last_keys",
    "cls_attention_last",
    "clip_visual",
    "decoder_attention",
    "decoder_next_attention",
    "decoder_keys",
    "decoder_states",
    "decoder_hidden",
    "decoder_text_attention",
    "decoder_peaks",
)
"""Fields with one entry per visual token beside `visual` and `index`."""

HEADS_FIRST = frozenset(
    {
        "cls_attention",
        "cls_attention_first",
        "cls_attention_last",
        "tower_size",
        "decoder_attention",
        "decoder_next_attention",
        "decoder_text_attention",
        "decoder_peaks",
    }
)
"""Those of them that have one column per visual token, as (heads, n); the others have one row."""

_IMAGE_SIGNALS: dict[str, tuple[int | None, str]] = {
    "vision_cls": (1, "vision_states"),
    "vision_last_cls": (2, "vision_last_keys"),
    "decoder_entered": (None, "visual"),
    "decoder_text": (None, "visual"),
    "decoder_text_keys": (None, "decoder_keys"),
    "decoder_text_states": (None, "decoder_states"),
}
"""Fields about the whole image: their number of rows (None for any), and the per-token field whose width they share."""


_ROWS = {"tower_size": 1, "decoder_peaks": 2}
"""Fields of `HEADS_FIRST` with a fixed number of rows."""


def _token_axis(name: str) -> int:
    return 1 if name in HEADS_FIRST else 0


FIELD_NAMES = frozenset(f.name for f in fields(Tokens))


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What a strategy kept of one `Tokens`. Immutable.

    Attributes:
        indices: int64 (k,), rows kept, unique; ascending unless the method's authors feed another order. In a pipeline
            they always refer to the original image. Empty only from strategies that say `withdraws`.
        total: number of tokens selected from.
        requested: number of tokens asked for; None for methods that find the number themselves. Larger than `kept`
            when more was asked for than there was: then everything is kept.
        features: float (k, d), only from methods that change token vectors (merging); row j belongs to `indices[j]`.
        extra: float (c, d), only from methods that make further tokens inside the decoder: hidden states that enter the
            sequence behind the kept tokens and stand for no single token of the image.
        order: int64 (k,), the same rows in the order in which they were picked, when the method has one.
        gains: float (k,), what each pick added to the method's objective, in pick order.
        scores: float (n,), the score of every token, for methods that rank.
        sizes: float (k,), how many of the image's patches each kept token stands for, behind a tower that merged them.
        stages: one entry per stage for a pipeline.
    """

    indices: Int[Tensor, " k"]
    total: int
    requested: int | None = None
    features: Float[Tensor, "k d"] | None = None
    extra: Float[Tensor, "c d"] | None = None
    order: Int[Tensor, " k"] | None = None
    gains: Float[Tensor, " k"] | None = None
    scores: Float[Tensor, " n"] | None = None
    sizes: Float[Tensor, " k"] | None = None
    stages: tuple[StageCount, ...] = ()

    def stamped(self, requested: int | None, total: int) -> "Selection":
        """The same selection with these two numbers. Much is stamped, so this is faster than `dataclasses.replace`."""
        done = object.__new__(Selection)
        done.__dict__.update(self.__dict__, requested=requested, total=total)
        return done

    def detached(self, *, notes_only: bool = False) -> "Selection":
        """The same selection as plain numbers; itself when no gradient flows through it anyway.

        Args:
            notes_only: leave `features` and `extra` as they are.
        """
        names = ("gains", "scores", "sizes") if notes_only else ("features", "extra", "gains", "scores", "sizes")
        values = {name: getattr(self, name) for name in names}
        found = {name: value.detach() for name, value in values.items() if value is not None and value.requires_grad}
        return replace(self, **found) if found else self

    @property
    def kept(self) -> int:
        """Number of tokens kept."""
        return self.indices.shape[0]

    @property
    def clamped(self) -> bool:
        """True when more tokens were asked for than there were."""
        return self.requested is not None and self.requested > self.total


def _check_tokens(tokens: Tokens) -> None:
    visual = tokens.visual
    check_matrix("Tokens", "visual", visual)
    n, width = visual.shape
    if n == 0:
        raise ValueError("Tokens: visual has no rows; an image needs at least one visual token")
    if visual.is_meta:
        raise ValueError(
            "Tokens: visual is on the device meta, where tensors hold no numbers; load the model's weights first"
        )
    if tokens.text is not None:
        check_matrix("Tokens", "text", tokens.text)
        if tokens.text.shape[1] != width:
            raise ValueError(
                f"Tokens: text is {tuple(tokens.text.shape)} but visual is {tuple(visual.shape)}; "
                "both must have the language model's width (text: input embeddings, visual: projector output)"
            )
    if tokens.question is not None:
        if tokens.text is None:
            raise ValueError("Tokens: question is a mask over the rows of text, which is None; give text as well")
        try:
            check_numbers("Tokens", "question", tokens.question, torch.bool, tokens.text.shape[0])
        except ValueError as error:
            raise ValueError(f"{error}: a mask over the {tokens.text.shape[0]} rows of text") from None
    for name in PER_TOKEN_SIGNALS:
        signal = getattr(tokens, name)
        if signal is not None:
            check_matrix("Tokens", name, signal)
            _check_signal(name, signal, n)
    _check_image_signals(tokens)
    check_place(tokens, ordered=tokens._ordered)
    for name in ("text", "question", "index", "tiles", "clip_text", *_IMAGE_SIGNALS, *PER_TOKEN_SIGNALS):
        value = getattr(tokens, name)
        if value is not None and value.device != visual.device:
            raise ValueError(
                f"Tokens: {name} is on {value.device} but visual is on {visual.device}; move them together"
            )


def _check_signal(name: str, signal: Tensor, n: int) -> None:
    """Raise unless a per-token signal has an entry for each token, and as many rows as it must."""
    if signal.shape[_token_axis(name)] != n:
        raise ValueError(f"Tokens: {name} is {tuple(signal.shape)} but there are {n} visual tokens")
    if name in HEADS_FIRST:
        rows = _ROWS.get(name)
        if signal.shape[0] != (rows or max(1, signal.shape[0])):
            wanted = f"{rows} rows" if rows else "at least one row"
            raise ValueError(f"Tokens: {name} must have {wanted}, one column per visual token, got {show(signal)}")


def _check_image_signals(tokens: Tokens) -> None:
    for name, (rows, beside) in _IMAGE_SIGNALS.items():
        signal, partner = getattr(tokens, name), getattr(tokens, beside)
        if signal is None:
            continue
        check_matrix("Tokens", name, signal)
        width = signal.shape[1] if partner is None else partner.shape[1]
        wanted = (signal.shape[0] if rows is None else rows, width)
        if signal.shape != wanted:
            raise ValueError(f"Tokens: {name} must be {wanted}, the width of {beside}, got {show(signal)}")
    if tokens.clip_text is not None:
        check_matrix("Tokens", "clip_text", tokens.clip_text)
        if not tokens.clip_text.shape[0]:
            raise ValueError("Tokens: clip_text has no rows; give one for each segment of the prompt, or None")
        if tokens.clip_visual is not None and tokens.clip_text.shape[1] != tokens.clip_visual.shape[1]:
            raise ValueError(
                f"Tokens: clip_text is {tuple(tokens.clip_text.shape)} but clip_visual is "
                f"{tuple(tokens.clip_visual.shape)}; both must have the width of CLIP's joint space"
            )
    if tokens.project is not None and not callable(tokens.project):
        raise TypeError(f"Tokens: project must be a function of a tensor, got {type(tokens.project).__name__}")


def _check_made(tokens: Tokens, name: str, value: Tensor, rows: int | None) -> None:
    """Raise unless new token vectors are like those of `tokens`; `rows` is None for any number of them."""
    check_matrix("Tokens.take", name, value)
    wanted = (value.shape[0] if rows is None else rows, tokens.visual.shape[1])
    if value.shape != wanted or value.dtype != tokens.visual.dtype or value.device != tokens.visual.device:
        raise ValueError(
            f"Tokens.take: {name} must be {tokens.visual.dtype} {wanted} on {tokens.visual.device}, got {show(value)} "
            f"on {value.device}"
        )
