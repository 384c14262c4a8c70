"""Stage 1 of TrimTokenator: keep the visual tokens that are best aligned with the text."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.fields import check_choice, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import (
    QUESTION,
    TEXT,
    Signal,
)
from tokenprune.core.strategy import EQUIVARIANT, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.core.validity import check_matrix
from tokenprune.kernels import all_finite, images, squared_distances, top_each
from tokenprune.kernels import top_k as top_k
from tokenprune.kernels.sure import rough_distances, sure_order
from tokenprune.kernels.ties import TIED, precise_dtype

Metric = Literal["sqeuclidean", "euclidean", "cosine"]
Reduce = Literal["mean", "max"]
TextSource = Literal["prompt", "question"]

_CHUNK = 512  # text tokens per block where a distance to each one is needed: memory stays O(512 n)


def alignment_score(
    visual: Float[Tensor, "n d"],
    text: Float[Tensor, "m d"],
    *,
    metric: Metric = "sqeuclidean",
    reduce: Reduce = "mean",
) -> Float[Tensor, " n"]:
    r"""How well each visual token agrees with the text; larger is better.

    Default: $\alpha_i = -\frac1m \sum_j \lVert v_i - t_j\rVert^2$, which equals
    $-\lVert v_i-\bar t\rVert^2 - \frac1m\sum_j\lVert t_j-\bar t\rVert^2$ with the mean text embedding $\bar t$: O(nd),
    no n x m matrix. The text enters through $\bar t$ alone, so word order does not matter.

    TrimTokenator (arXiv 2509.00320) calls the score an approximation of mutual information. It is not a value in nats.
    The formula is the one of a third-party re-implementation; whether the paper squares the norm or normalises the
    vectors is open, hence the options.

    Scores are computed in float64 after scaling by a power of two, so inputs of any size neither overflow nor lose
    their order; the result is given in float32 (float64 for float64 input) and saturates at the range of that type.

    Args:
        visual: (n, d), projector output, any floating dtype.
        text: (m, d), input embeddings of the text tokens, m >= 1.
        metric: "sqeuclidean" and "euclidean" score by negative distance, "cosine" by cosine similarity (zero vectors
            have similarity 0 with everything).
        reduce: "mean" over text tokens, or "max": agreement with the best matching one.

    Returns:
        float32 (n,); float64 when `visual` is float64. No gradient flows through it: it is for choosing.

    Raises:
        TypeError: when visual or text is no tensor of floating point numbers.
        ValueError: for an unknown metric or reduce, an empty text, shapes or devices that differ, NaN or infinity.

    Examples:
        >>> visual = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> alignment_score(visual, torch.tensor([[0.0, 0.0]]))
        tensor([ -0., -25.])
    """
    check_choice("alignment_score", "metric", metric, get_args(Metric))
    check_choice("alignment_score", "reduce", reduce, get_args(Reduce))
    for name, value in (("visual", visual), ("text", text)):
        check_matrix("alignment_score", name, value)
        if not value.shape[0]:
            what = "the prompt holds no text token to align with" if name == "text" else "there is nothing to score"
            raise ValueError(f"alignment_score: {name} has no rows; {what}")
    if visual.shape[1] != text.shape[1] or visual.device != text.device:
        raise ValueError(
            f"alignment_score: text is {tuple(text.shape)} on {text.device} but visual is {tuple(visual.shape)} on "
            f"{visual.device}; both must have the language model's width and be on one device"
        )
    for name, finite in zip(("visual", "text"), all_finite([visual, text]), strict=True):
        if not finite:
            raise ValueError(f"alignment_score: {name} holds NaN or infinity; find where the model makes it")
    with torch.no_grad():
        return _unscaled(*_scaled_scores([visual], [text], metric, reduce), visual.dtype)[0]


def _scaled_scores(
    visuals: Sequence[Float[Tensor, "n d"]], texts: Sequence[Float[Tensor, "_ d"]], metric: str, reduce: str
) -> tuple[Float[Tensor, "b n"], Int[Tensor, " b"]]:
    """Scores in float64 divided by powers of two, and their exponents: ranking by them is safe from overflow.

    Every image has its own text and its own power. What an image gets does not depend on the others.
    """
    frame = _Frame.of(visuals, texts)
    exponent, scale = frame.exponent, frame.scale
    if metric == "sqeuclidean" and reduce == "mean":
        distances = squared_distances(visuals, frame.centre, scale)
        return distances.add_(frame.spread[:, None]).neg_(), 2 * exponent
    scores = []
    for visual, words, factor in zip(visuals, texts, scale, strict=True):
        v, t = visual.to(scale.dtype) * factor, words.to(scale.dtype) * factor
        scores.append(_cosine(v, t, reduce) if metric == "cosine" else _over_text(v, t, metric, reduce))
    return torch.stack(scores), exponent * {"cosine": 0, "euclidean": 1}.get(metric, 2)


class _Frame(NamedTuple):
    """Of each image over 2^exponent, which is 1 over the scale, the mean of its text and the spread around it."""

    exponent: Int[Tensor, " b"]
    scale: Float[Tensor, " b"]
    centre: Float[Tensor, "b d"]
    spread: Float[Tensor, " b"]

    def one(self, image: int) -> "_Frame":
        """The part of one image, with an axis of 1."""
        return _Frame(*(each[image : image + 1] for each in self))

    @classmethod
    def of(cls, visuals: Sequence[Float[Tensor, "n d"]], texts: Sequence[Float[Tensor, "_ d"]]) -> "_Frame":
        """Every image has its own."""
        dtype = precise_dtype(visuals[0].device)
        text = _Text.of([text.to(dtype) for text in texts])
        # Multiplying by a power of two is exact, so ordinary inputs give the very bits of the plain formula. The limits
        # keep that power itself a normal float32 number, which `torch.ldexp` makes.
        largest = torch.stack([_largest(visual) for visual in visuals]).to(dtype)
        largest = torch.maximum(largest, text.largest)
        exponent = torch.frexp(largest).exponent.clamp(-100, 126)
        scale = torch.ldexp(torch.ones_like(largest), -exponent)
        shift = text.exponent - exponent  # from the text's own power to that of the image
        return cls(exponent, scale, torch.ldexp(text.centre, shift[:, None]), torch.ldexp(text.spread, 2 * shift))


def _nearest(visual: Float[Tensor, "n d"], frame: _Frame, keep: int) -> Choice:
    """The tokens of one image on a CPU that are nearest to the text; in float64 only those that float32 leaves open.

    The choice is that of `_scaled_scores`; the scores that are shown are those of float32 where they decide nothing.
    """

    def exact(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        distances = squared_distances([visual[torch.from_numpy(tokens)]], frame.centre, frame.scale)
        return np.asarray(distances.add_(frame.spread[:, None]).neg_()[0].numpy())

    rough, bound = rough_distances(visual, frame.centre[0], frame.scale[0])
    scores = -(rough + float(frame.spread[0]))
    order = sure_order(scores, bound, keep, exact)
    if order is None:
        scores = exact(np.arange(len(visual)))
        order = _nearest_first(torch.from_numpy(scores), keep)
    shown = _unscaled(torch.from_numpy(scores)[None], 2 * frame.exponent, visual.dtype)[0]
    return Choice(order.sort().values, order=order, scores=shown)


def _nearest_first(scores: Float[Tensor, " n"], keep: int) -> Int[Tensor, " k"]:
    return top_each([scores], [keep], slacks=[_slack(scores, "sqeuclidean")])[0][1]


class _Text(NamedTuple):
    """Of each text the mean of its rows and their mean squared distance from it, both of the text over 2^exponent."""

    largest: Float[Tensor, " b"]
    exponent: Int[Tensor, " b"]
    centre: Float[Tensor, "b d"]
    spread: Float[Tensor, " b"]

    @classmethod
    def of(cls, texts: Sequence[Float[Tensor, "_ d"]]) -> "_Text":
        """Texts of one length side by side, and one that several images share only once."""
        distinct = {id(text): text for text in texts}
        groups: dict[int, list[Tensor]] = {}
        for text in distinct.values():
            groups.setdefault(text.shape[0], []).append(text)
        parts = [cls._of(torch.stack(group)) for group in groups.values()]
        place = {id(text): i for i, text in enumerate(text for group in groups.values() for text in group)}
        joined = cls(*(torch.cat(each) for each in zip(*parts, strict=True)))
        rows = [place[id(text)] for text in texts]
        if rows == list(range(len(place))):
            return joined
        chosen = torch.tensor(rows, device=texts[0].device)
        return cls(*(each[chosen] for each in joined))

    @classmethod
    def _of(cls, text: Float[Tensor, "b m d"]) -> "_Text":
        low, high = text.flatten(1).amin(1), text.flatten(1).amax(1)
        largest = torch.maximum(high, low.neg_())
        exponent = torch.frexp(largest).exponent.clamp(-100, 126)
        scaled = torch.ldexp(text, -exponent[:, None, None])
        centre = scaled.mean(1)
        spread = scaled.sub_(centre[:, None]).square_().sum(-1).mean(1)
        return cls(largest, exponent, centre, spread)


def _largest(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    low, high = torch.aminmax(x)
    return torch.maximum(high, low.neg_())


def _unscaled(scores: Float[Tensor, "b n"], exponent: Int[Tensor, " b"], given: torch.dtype) -> Float[Tensor, "b n"]:
    # In float64, where neither the power nor the product overflows, unless the input itself was near that range.
    exact = torch.ldexp(scores, exponent[:, None])
    dtype = torch.float64 if given == torch.float64 else torch.float32
    return exact.clamp(min=torch.finfo(dtype).min).to(dtype)


def _slack(scores: Float[Tensor, " n"], metric: str) -> Float[Tensor, ""]:
    """The distance within which scores are ties."""
    return TIED * (torch.ones_like(scores[0]) if metric == "cosine" else scores.abs().amax())


def _cosine(v: Float[Tensor, "n d"], t: Float[Tensor, "m d"], reduce: str) -> Float[Tensor, " n"]:
    unit_v, unit_t = _unit(v), _unit(t)
    if reduce == "mean":
        return unit_v @ unit_t.mean(0)
    return torch.stack([(unit_v @ part.T).amax(1) for part in unit_t.split(_CHUNK)]).amax(0)


def _over_text(v: Float[Tensor, "n d"], t: Float[Tensor, "m d"], metric: str, reduce: str) -> Float[Tensor, " n"]:
    parts = []
    for part in t.split(_CHUNK):
        distance = torch.cdist(v, part, compute_mode="donot_use_mm_for_euclid_dist")
        similarity = -(distance if metric == "euclidean" else distance.square())
        parts.append(similarity.amax(1) if reduce == "max" else similarity.sum(1))
    stacked = torch.stack(parts)
    return stacked.amax(0) if reduce == "max" else stacked.sum(0) / t.shape[0]


def _unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    # Two steps, so that tiny rows do not underflow when squared; a zero row stays zero.
    x = x / x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.div(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1.0))


@strategy("mi_alignment", paper="TrimTokenator, arXiv 2509.00320 (stage 1)")
class MIAlignment(Stage):
    """Keep the visual tokens best aligned with the text: stage 1 of TrimTokenator (arXiv 2509.00320).

    Score and formula: see `alignment_score`.

    Deviations: the paper's abstract names a mutual-information criterion approximated by an L2 norm; the concrete
    defaults (squared, unnormalised, mean over all prompt tokens) are those of a third-party re-implementation.

    Args:
        keep: int, a number of tokens, or float in (0, 1], a share of the image's original tokens.
        metric: "sqeuclidean" (default), "euclidean" or "cosine".
        reduce: "mean" over the text tokens (default) or "max", the best matching one.
        text: "prompt", all text of the prompt (default), or "question", only the tokens marked in `Tokens.question`.

    Examples:
        >>> tokens = Tokens(torch.tensor([[0.0], [5.0], [1.0]]), text=torch.tensor([[0.0]]))
        >>> MIAlignment(keep=2).select(tokens).indices
        tensor([0, 2])
    """

    keep: Keep
    metric: Metric = "sqeuclidean"
    reduce: Reduce = "mean"
    text: TextSource = "prompt"
    promises = EQUIVARIANT

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The text, and which of it is the question."""
        return (TEXT, QUESTION) if self.text == "question" else (TEXT,)

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Score images of one size side by side, then rank them all."""
        texts = [self._text(tokens) for tokens in batch]
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, tokens in enumerate(batch):
            visual = tokens.visual
            groups.setdefault((visual.shape, visual.dtype, visual.device, texts[i].dtype), []).append(i)
        found: list[Choice | None] = [None] * len(batch)
        for group in groups.values():
            part = [batch[i] for i in group]
            choices = self._choose_alike(part, [texts[i] for i in group], [self.count(tokens) for tokens in part])
            for i, choice in zip(group, choices, strict=True):
                found[i] = choice
        return [choice for choice in found if choice is not None]

    def _choose_alike(self, batch: Sequence[Tokens], texts: Sequence[Tensor], keeps: Sequence[int]) -> list[Choice]:
        """Images of one size, dtype and device."""
        visuals = [tokens.visual for tokens in batch]
        narrow = images.on_host(visuals[0], "auto") and visuals[0].dtype != torch.float64
        if narrow and self.metric == "sqeuclidean" and self.reduce == "mean":
            frame = _Frame.of(visuals, texts)
            return [_nearest(visuals[i], frame.one(i), keep) for i, keep in enumerate(keeps)]
        scaled, exponent = _scaled_scores(visuals, texts, self.metric, self.reduce)
        shown = _unscaled(scaled, exponent, visuals[0].dtype)
        kept = top_each(list(scaled), keeps, slacks=[_slack(each, self.metric) for each in scaled])
        return [Choice(indices, order=order, scores=score) for (indices, order), score in zip(kept, shown, strict=True)]

    def _text(self, tokens: Tokens) -> Float[Tensor, "m d"]:
        text: Tensor = tokens[TEXT]
        if self.text == "question":
            text = text[tokens[QUESTION]]
        if text.shape[0] == 0:
            raise ValueError(f"MIAlignment: the {self.text} holds no text token; use text='prompt' or another strategy")
        return text
