"""Running a strategy on a prompt, timed; and whether it fits the model at all."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from tokenprune.core.merging import Merging
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Selection
from tokenprune.core.signals import CLIP_TEXT, CLIP_VISUAL, TOWER_SIZE, VISION_STATES
from tokenprune.core.strategy import PruningStrategy, Stage
from tokenprune.core.text import parse
from tokenprune.core.tokens import Tokens
from tokenprune.models.clock import now
from tokenprune.models.encode.tower import check_layers
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.plan import makes, site_of, tower_part
from tokenprune.models.prompt.dense import Prompt
from tokenprune.models.reading.sources import in_decoder
from tokenprune.models.wrapped.compiled import outside_graphs


def as_strategy(strategy: PruningStrategy | str) -> PruningStrategy:
    """The strategy itself, or the one that a text describes.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(strategy, str):
        return parse(strategy)
    if not isinstance(strategy, PruningStrategy):
        got = f"the class {strategy.__name__}" if isinstance(strategy, type) else type(strategy).__name__
        raise TypeError(
            f"prune: strategy must be a PruningStrategy or its text, got {got}; write for example GreedyRepMax(64)"
        )
    return strategy


def place_strategy(strategy: PruningStrategy, adapter: Adapter) -> PruningStrategy:
    """The strategy with every decoder layer named: see `PruningStrategy.at_depth`."""
    return strategy.at_depth(len(adapter.decoder_layers)) if "decoder" in adapter.sites else strategy


def fit_strategy(strategy: PruningStrategy, adapter: Adapter) -> PruningStrategy:
    """The same, checked.

    Raises:
        UnsupportedError: when it cannot run there (`check_strategy_fits`).
    """
    strategy = place_strategy(strategy, adapter)
    check_strategy_fits(strategy, adapter)
    return strategy


def check_strategy_fits(strategy: PruningStrategy, adapter: Adapter) -> None:
    """Raise unless every stage acts where this family can be pruned, and gets the signals that it needs.

    Raises:
        UnsupportedError: naming the stage, and the site or signal.
    """
    family = type(adapter.model).__name__
    for stage in strategy.stages:
        site = site_of(stage.place)
        if site not in adapter.sites:
            reason = (
                ", because what follows its vision tower takes the raster of patches, or its layers are of another kind"
                if site == "tower"
                else ""
            )
            raise UnsupportedError(
                f"prune: {stage!r} acts at the {site!r} site, but {family} can be pruned at "
                f"{', '.join(map(repr, sorted(adapter.sites)))} only{adapter.because(site) or reason}; "
                "choose a strategy of that site"
            )
        if isinstance(stage.place, InDecoder):
            _check_decoder_stage(stage, stage.place, adapter)
        if isinstance(stage, Merging):
            check_layers(stage, adapter.tower_use({}).layers, family)
        _check_signals(stage, adapter, family)


def _check_signals(stage: Stage, adapter: Adapter, family: str) -> None:
    """Raise unless the model supplies every signal that the stage cannot do without."""
    through_clip = [signal for signal in stage.needs if signal in (CLIP_VISUAL, CLIP_TEXT)]
    if through_clip and adapter.why_not(VISION_STATES) is None:
        if adapter.clip is None:
            raise UnsupportedError(
                f"prune: {stage!r} needs Tokens.{through_clip[0]}, patches and prompt in CLIP's joint space, which "
                f"{family} does not contain; pass prune(model, strategy, "
                "clip=tokenprune.models.Clip(clip_model, clip_tokenizer, question_reader(processor))), on the "
                "command line --clip FOLDER, with the CLIP model that its vision tower was made from"
            )
        adapter.clip.check(adapter)
    for signal in stage.needs:
        inside = isinstance(stage.place, InDecoder)
        reason = "" if in_decoder(signal) and not inside else adapter.why_not(signal)
        if reason is None or not signal.required or (signal in through_clip and adapter.clip is not None):
            continue
        raise UnsupportedError(
            f"prune: {stage!r} needs Tokens.{signal}, which {family} cannot supply "
            f"{'inside' if inside else 'before'} its language model "
            f"(it has {', '.join(sorted(adapter.signals))}){reason}; choose a strategy that does without it"
        )


def _check_decoder_stage(stage: Stage, place: InDecoder, adapter: Adapter) -> None:
    family, layers, config = type(adapter.model).__name__, len(adapter.decoder_layers), adapter.decoder.config
    last = layers if place.mid_layer else layers - 1  # within the last layer, its feed-forward part is still to come
    if 1 <= place.layer < adapter.first_layer:
        raise UnsupportedError(
            f"prune: {stage!r} acts at decoder layer {place.layer}, but {family} can be pruned there from layer "
            f"{adapter.first_layer} on{adapter.because('early')}; choose a later layer"
        )
    if not 1 <= place.layer <= last:
        raise UnsupportedError(
            f"prune: {stage!r} acts at the 'decoder' site with layer={place.layer!r}, but {family} has layers 0 to "
            f"{layers - 1} and the layer before decides; choose a layer from 1 to {last}"
        )
    if stage.yields == "merged":
        raise UnsupportedError(
            f"prune: {stage!r} makes new tokens in place of old ones, which is not supported inside the language "
            "model; choose a strategy that keeps tokens as they are, or puts new ones behind them"
        )
    if place.mid_layer and not all(hasattr(layer, "mlp") for layer in adapter.decoder_layers):
        raise UnsupportedError(
            f"prune: {stage!r} drops between attention and feed-forward, but layers of {family} have no `mlp`; choose "
            "a strategy that drops between layers"
        )
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if any(kind != "full_attention" for kind in kinds) or (sliding is not None and len(kinds) == 1):
        raise UnsupportedError(
            f"prune: {stage!r} acts in the decoder, but the language model of {family} has layers without full "
            "attention, whose masks are not supported there; choose a strategy that acts at the 'projector' site"
        )


class Chosen(NamedTuple):
    """One selection per image, the seconds that they took, and for each whether it is an earlier one kept."""

    selections: list[Selection]
    seconds: float
    frozen: tuple[bool, ...] = ()


def choose_all(strategy: PruningStrategy | None, prompt: Prompt) -> Chosen:
    """`select_tokens`, without a memory."""
    return Chosen(*select_tokens(strategy, prompt))


@outside_graphs
def select_tokens(
    strategy: PruningStrategy | None, prompt: Prompt, *, only: Sequence[int] | None = None
) -> tuple[list[Selection], float]:
    """Let the strategy choose among the tokens of every image of the prompt, all images in one call.

    Args:
        strategy: what decides; None keeps everything.
        prompt: from `build_prompt`, with the signals that the strategy needs.
        only: numbers of the images among which to choose; None for all.

    Returns:
        One selection per image in placeholder order, and the seconds that the choice took; on a CUDA device both ends
        of the measurement wait for the device.

    Raises:
        UnsupportedError: when the strategy acts inside the language model.
        RuntimeError: when it acts inside the vision tower, and the prompt's tokens did not come from there.
    """
    chosen = range(len(prompt.segments)) if only is None else only
    if not chosen:
        return [], 0.0
    if strategy is not None and isinstance(strategy.place, InDecoder):
        raise UnsupportedError(
            f"select_tokens: {strategy!r} acts inside the language model, but only what is dropped before it can be "
            "chosen here; use the context prune(model, strategy)"
        )
    device = prompt.embeds.device
    if strategy is None:
        images = prompt.tokens()
        return [Selection(indices=images[i].positions, total=images[i].n) for i in chosen], 0.0
    if tower_part(strategy) is not None and (prompt.vision is None or TOWER_SIZE not in prompt.vision.signals):
        raise RuntimeError(
            f"select_tokens: {strategy!r} acts inside the vision tower, but the vision tower did not merge for this "
            "prompt; use prune or prune_inputs, or tokenprune.models.encode.clip.see with the strategy as `tower`"
        )
    start = now(device)
    learning = torch.is_grad_enabled() and makes(strategy, "merged")
    images = prompt.tokens(strategy.needs, attached=learning)
    selections = strategy.select_batch([images[i] for i in chosen])
    if learning:
        warn_if_constant(strategy, images, selections)
    return selections, now(device) - start


def warn_if_constant(strategy: PruningStrategy, images: Sequence[Tokens], selections: Sequence[Selection]) -> None:
    """Warn when a model is being trained and the tokens that the strategy made carry no gradient.

    Args:
        strategy: what chose.
        images: what it got.
        selections: what it answered.
    """
    vectors = [tensor for selection in selections for tensor in (selection.features, selection.extra)]
    made = [tensor for tensor in vectors if tensor is not None and tensor.numel()]
    if made and any(image.attached for image in images) and not any(tensor.requires_grad for tensor in made):
        warnings.warn(
            f"prune: {strategy!r} makes new tokens through which no gradient flows, so nothing before them learns from "
            "them; train with another strategy, or wrap the call in torch.no_grad() when you do not train",
            stacklevel=2,
        )
