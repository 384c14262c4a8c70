"""Redundancy of visual and text tokens at every layer of the language model, in a dense run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.analysis.intervals import show
from tokenprune.analysis.measures import Watch, new_figure, numbers, styled, texts
from tokenprune.analysis.tokens.controls import NO_CONTROLS, Controls
from tokenprune.analysis.tokens.redundancy import RedundancyReport, RedundancyTally, controlled_redundancy
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.samples import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenprune.evaluate.loading import LoadedModel

_NAMES = {
    "mean_cosine": "mean cosine of pairs",
    "neighbours": "tokens with a near-duplicate",
    "rank_share": "effective rank / tokens",
    "participation_share": "participation ratio / tokens",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStates:
    """What stands in front of one layer for one prompt.

    Attributes:
        layer: 0 for what enters the first decoder layer; L, the number of layers, for the output of the last one,
            before the final norm.
        visual: float (n, d), hidden states of the visual tokens.
        text: float (m, d), those of the text tokens.
        distinct: int64 (u,), rows of `text` that hold the first occurrence of their word.
    """

    layer: int
    visual: Float[Tensor, "n d"]
    text: Float[Tensor, "m d"]
    distinct: Int[Tensor, " u"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerReport:
    """Redundancy over layers.

    Attributes:
        controls: what was taken out.
        layers: one report per layer, in front of it; the last one is behind the last layer.
    """

    controls: Controls
    layers: tuple[RedundancyReport, ...]

    def plot(self, ax: "Axes", *, measure: str = "mean_cosine") -> "Axes":
        """One measure over layers, visual and text, with 95% intervals over images.

        Args:
            ax: where to draw.
            measure: a field of `RedundancyMeasures`.
        """
        depth = range(len(self.layers))
        for name, colour in (("visual", "#0072B2"), ("text", "#D55E00")):
            means = [getattr(report, name)[measure] for report in self.layers]
            low, high = [np.array([getattr(mean, end) for mean in means]) for end in ("low", "high")]
            ax.plot(depth, [mean.value for mean in means], "o-", color=colour, markersize=4, label=f"{name} tokens")
            ax.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.set_xticks(depth)
        ax.set_xlabel("in front of decoder layer (last: behind all)")
        ax.set_ylabel(_NAMES.get(measure, measure.replace("_", " ")))
        ax.set_title(self.controls.label, loc="left")
        ax.legend(loc="best")
        return ax

    @property
    def explanation(self) -> tuple[str, ...]:
        """What was found, in sentences with numbers: the first and the last layer."""
        return tuple(
            f"{_NAMES[name]}, {where}: visual {show(report.visual[name])}, text {show(report.text[name])}, difference "
            f"{show(report.difference[name])}."
            for where, report in (("entering the model", self.layers[0]), ("behind the last layer", self.layers[-1]))
            for name in ("mean_cosine", "neighbours", "rank_share")
        )


def stream_layers(
    model: Any,  # noqa: ANN401
    inputs: dict[str, Any],
    take: Callable[[LayerStates], None],
) -> None:
    """Run one prompt through the model without pruning and hand over every layer's states as they arise.

    Forward hooks on the decoder layers that the model's adapter names, so any supported family will do, and any
    attention backend. Only one layer's states are held at a time, unless `take` keeps them.

    Args:
        model: a supported transformers model.
        inputs: one prompt with its image or images, as the processor made it.
        take: called once per layer, in order.

    Raises:
        ValueError: when there is more than one prompt, or no visual or no text token.
    """
    from tokenprune.models import adapter_for
    from tokenprune.models.prompt.dense import is_placeholder

    adapter = adapter_for(model)
    ids = inputs["input_ids"]
    if ids.shape[0] != 1:
        raise ValueError(f"stream_layers: give one prompt at a time, got {ids.shape[0]}")
    real = inputs["attention_mask"][0].bool() if "attention_mask" in inputs else torch.ones_like(ids[0]).bool()
    visual = is_placeholder(ids, adapter)[0] & real
    text = real & ~visual
    if not bool(visual.any()) or not bool(text.any()):
        raise ValueError(
            f"stream_layers: the prompt has {int(visual.sum())} visual and {int(text.sum())} text tokens; give an "
            "image and a question"
        )
    first: dict[int, int] = {}
    for row, word in enumerate(ids[0, text].tolist()):
        first.setdefault(word, row)
    distinct = torch.tensor(list(first.values()), device=ids.device)

    def hand_over(layer: int, hidden: Tensor) -> None:
        states = hidden.detach()[0]
        parts = [states[mask.to(states.device)] for mask in (visual, text)]
        take(LayerStates(layer=layer, visual=parts[0], text=parts[1], distinct=distinct.to(states.device)))

    def before(number: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
            hand_over(number, args[0] if args else kwargs["hidden_states"])

        return hook

    def behind(module: Any, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        hand_over(len(blocks), output[0] if isinstance(output, tuple) else output)

    blocks = adapter.decoder_layers
    with ExitStack() as stack, torch.no_grad():
        for number, layer in enumerate(blocks):
            stack.callback(layer.register_forward_pre_hook(before(number), with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(behind).remove)
        adapter.base(**inputs, use_cache=False)


def analyse_layers(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    settings: Sequence[Controls] = (Controls(),),
    *,
    tau: float = 0.9,
    watch: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
) -> tuple[LayerReport, ...]:
    """Redundancy of visual against text tokens in front of every decoder layer, over a data set.

    One prompt and one layer in memory at a time; of each only numbers are kept. With `Controls.unique` repeated words
    count once, at their first place, at every layer alike: inside the model the second "the" is no exact copy any more,
    but still no evidence of how rich text is.

    Args:
        loaded: the model and its processor.
        samples: the data set; all visual tokens of a sample are one cloud.
        settings: confounders to take out, a report for each.
        tau: cosine above which two tokens count as near-duplicates.
        watch: wraps the samples, for a progress bar.

    Raises:
        ValueError: when there is no sample or no setting, or a prompt has fewer than two distinct text tokens.
    """
    if not samples or not settings:
        raise ValueError("analyse_layers: samples and settings must not be empty; give at least one of each")
    tallies: list[list[RedundancyTally]] = [[] for _ in settings]
    ids: list[str] = []
    for sample, inputs in _prompts(loaded, watch(samples)):
        ids.append(sample.id)

        def take(states: LayerStates, name: str = sample.id) -> None:
            for controls, own in zip(settings, tallies, strict=True):
                if states.layer == len(own):
                    own.append(RedundancyTally())
                text = states.text[states.distinct] if controls.unique else states.text
                own[states.layer].add(controlled_redundancy((states.visual, text), name, controls, tau))

        stream_layers(loaded.model, inputs, take)
    return tuple(
        LayerReport(controls=controls, layers=tuple(tally.report(controls, tau, ids) for tally in own))
        for controls, own in zip(settings, tallies, strict=True)
    )


def _prompts(loaded: "LoadedModel", samples: Iterable[Sample]) -> Iterator[tuple[Sample, dict[str, Any]]]:
    from tokenprune.evaluate.batches import processed
    from tokenprune.evaluate.loading import on_device

    for sample in samples:
        yield sample, on_device(processed(loaded.processor, [sample]), loaded)


DRAWN = ("mean_cosine", "neighbours", "rank_share")


@styled
def layers(model: "LoadedModel", samples: Sequence[Sample], *, tau: float = 0.9, watch: Watch = iter) -> Report:
    """Measure redundancy before every decoder layer, without and with confounders controlled.

    Args:
        model: with its processor.
        samples: the data set.
        tau: cosine from which on two tokens are near-duplicates, between -1 and 1.
        watch: wraps the samples, for a progress bar.
    """
    settings = (NO_CONTROLS, Controls())
    reports = analyse_layers(model, samples, settings, tau=tau, watch=watch)
    figure = new_figure(4.6 * len(DRAWN), 3.7 * len(reports))
    axes = figure.subplots(len(reports), len(DRAWN), squeeze=False)
    shown = []
    rows: list[Sequence[object]] = []
    for line, report in zip(axes, reports, strict=True):
        for ax, measure in zip(line, DRAWN, strict=True):
            report.plot(ax, measure=measure)
        for measure in DRAWN:
            title = f"{measure.replace('_', ' ')} per layer, {report.controls.label} (tau {tau:g})"
            body = [
                [str(number), *(show(side[measure]) for side in (layer.visual, layer.text, layer.difference))]
                for number, layer in enumerate(report.layers)
            ]
            shown.append(texts(title, ("layer", "visual", "text", "difference"), body))
        for number, layer in enumerate(report.layers):
            for side, means in (("visual", layer.visual), ("text", layer.text), ("difference", layer.difference)):
                rows.extend((report.controls.label, number, name, side, *numbers(mean)) for name, mean in means.items())
    last = reports[-1]
    images = len(last.layers[0].ids)
    return Report(
        title="Does redundancy change inside the language model?",
        kind="analyze redundancy",
        shown=shown,
        tables={"layers": frame(("controls", "layer", "measure", "side", "value", "low", "high", "images"), rows)},
        figures={"layers": figure},
        notes={
            "layers.png": "Means with 95% intervals over images. Above: tokens as they are; below: all confounders "
            "taken out. Layer 0 is what enters the language model."
        },
        findings=[f"With all confounders taken out ({last.controls.label}), {images} images:", *last.explanation],
        configuration={"images": images, "strategies": [], "tau": tau, "questions": len(samples)},
    )
