"""`read`: the visual tokens of a batch and what a model can say about them, without pruning anything."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tokenprune.arguments import brief
from tokenprune.core.fields import strategy
from tokenprune.core.places import BeforeDecoder, InDecoder, Place
from tokenprune.core.selection import Choice
from tokenprune.core.signals import VISION_STATES, FromInputs, Signal
from tokenprune.core.strategy import Pipeline, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.models.calls.batch import check_placeholders, prune_batch
from tokenprune.models.calls.refuse import refuse_embeddings, refuse_packed
from tokenprune.models.context import is_pruned
from tokenprune.models.decoder.attach import cut_inside
from tokenprune.models.decoder.inject import injected
from tokenprune.models.encode.clip import CLIP_SIGNALS, Clip
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.families.registry import adapter_for
from tokenprune.models.plan import make_plan
from tokenprune.models.prompt.choose import check_strategy_fits
from tokenprune.models.reading.sources import in_decoder, read_ahead


def read(
    model: Any,  # noqa: ANN401
    inputs: Mapping[str, Any],
    needs: Sequence[Signal] = (),
    *,
    layer: int | None = None,
    clip: Clip | None = None,
) -> list[Tokens]:
    """Read the visual tokens of a batch, and signals about them, as a strategy would get them.

    The vision tower and the projector run once. Where a signal is read inside the language model, the whole batch also
    goes through the language model once, with every visual token. The model runs in evaluation mode and without
    gradients; afterwards it is as it was, with no hook left on it. Values are the same whichever side the padding is
    on, and with every attention backend, up to rounding.

    Args:
        model: a supported transformers model, or one inside a wrapper that `tokenprune.models.wrapped.unwrap` knows.
        inputs: what the processor returned (`input_ids`, `attention_mask`, `pixel_values`, ...), on the model's device.
        needs: signals to read. One at another layer of the vision tower is written `CLS_ATTENTION.at(0)`. A signal with
            a default that the model does not supply has its default; `TILES.strict()` is refused then.
        layer: for signals that are read inside the language model: the decoder layer before which a stage would act,
            from 1 to the number of layers. What such a signal calls "the layer before" is `layer - 1`. Signals of what
            entered the language model are the same at every layer and need none.
        clip: a CLIP model beside the model, for `CLIP_VISUAL` and `CLIP_TEXT`.

    Returns:
        One `Tokens` per image, prompt after prompt, in each in the order of the images: `visual` (n, d), `text`,
        `question`, `grid`, and `tokens[SIGNAL]` for every signal of `needs`. Nothing for a batch without images.

    Raises:
        TypeError: when `inputs` is no mapping, `needs` holds something else than signals, or an argument does not
            belong to a prompt.
        ValueError: when prompts and images do not fit together, `layer` is missing, out of range or given without need,
            or a value holds NaN or infinity.
        UnsupportedError: when the model cannot supply a signal, with the reason; when a prompt has no text after an
            image, and a signal is about what that text attends to.
        RuntimeError: when a `prune` context is open on the model.

    Examples:
        >>> from tokenprune.core.signals import CLS_ATTENTION, DECODER_ATTENTION
        >>> from tokenprune.testing import tiny_model
        >>> model, make_inputs = tiny_model("llava")
        >>> images = read(model, make_inputs(["what is in <0>"]), [CLS_ATTENTION, DECODER_ATTENTION], layer=1)
        >>> images[0].grid, images[0][CLS_ATTENTION].shape, images[0][DECODER_ATTENTION].shape
        ((4, 4), torch.Size([3, 16]), torch.Size([4, 16]))
    """
    return _read(adapter_for(model), inputs, needs, [layer], clip)[0]


def read_layers(
    model: Any,  # noqa: ANN401
    inputs: Mapping[str, Any],
    needs: Sequence[Signal],
    layers: Sequence[int],
    *,
    clip: Clip | None = None,
) -> list[list[Tokens]]:
    """Read signals at several decoder layers in one run of the model; otherwise the same as `read`.

    Args:
        model: see `read`.
        inputs: see `read`.
        needs: signals, at least one of them read inside the language model.
        layers: the decoder layers, ascending, each as `layer` of `read`.
        clip: see `read`.

    Returns:
        For each layer what `read` returns there.

    Raises:
        ValueError: when there is no layer, or they do not ascend; otherwise as `read`.

    Examples:
        >>> from tokenprune.core.signals import DECODER_ATTENTION
        >>> from tokenprune.testing import tiny_model
        >>> model, make_inputs = tiny_model("llava", layers=3)
        >>> first, second = read_layers(model, make_inputs(["what is in <0>"]), [DECODER_ATTENTION], range(1, 3))
        >>> first[0][DECODER_ATTENTION].shape
        torch.Size([4, 16])
    """
    every = list(layers)
    if not every or any(later <= earlier for earlier, later in pairwise(every)):
        raise ValueError(f"read_layers: layers must ascend, at least one, got {brief(every)}; sort them")
    return _read(adapter_for(model), inputs, needs, every, clip)


def _read(
    adapter: Adapter, inputs: object, needs: object, layers: Sequence[int | None], clip: Clip | None
) -> list[list[Tokens]]:
    adapter.clip = clip
    wanted = _checked(needs, adapter)
    readings = [Reading(wanted, where=_place(wanted, layer, adapter)) for layer in layers]
    call = _prompt_arguments(inputs, adapter)
    for reading in readings:
        _check_inside(reading, adapter)
    if is_pruned(adapter.base):
        raise RuntimeError(
            "read: a prune context is open on this model, here or in another thread, and only what the context "
            "encodes may go through the vision tower then; call read before the context is opened or after it"
        )
    plan = make_plan(Pipeline(readings))
    with torch.no_grad(), _evaluating(adapter.model):
        dense = prune_batch(adapter, plan, call, forward=True)
        check_placeholders(adapter, dense.prompt)
        if plan.cuts and dense.prompt.segments:
            with injected(adapter, dense.pruned), cut_inside(adapter, plan, dense):
                adapter.base(**dense.pruned.as_inputs(), use_cache=False)
    return [reading.images for reading in readings]


@strategy("read", register=False)
class Reading(Stage):
    """Keep every token, and note what was known of the images. For one batch only, unlike other strategies.

    Args:
        wanted: signals to read.
        where: before which part of the model they are read.
    """

    wanted: tuple[Signal, ...]
    where: BeforeDecoder | InDecoder

    @cached_property
    def images(self) -> list[Tokens]:
        """The images, in the order in which they came."""
        return []

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The signals."""
        return self.wanted

    @property
    def place(self) -> Place:
        """Where they are read."""
        return self.where

    def choose(self, tokens: Tokens) -> Choice:
        """Note the image and keep it whole."""
        self.images.append(tokens)
        return Choice(torch.arange(tokens.n, device=tokens.visual.device))


def _place(needs: Sequence[Signal], layer: int | None, adapter: Adapter) -> BeforeDecoder | InDecoder:
    """Where signals are known, from the layer that the caller names.

    Raises:
        TypeError: when the layer is no int.
        ValueError: when it is missing, out of range, or given without need.
    """
    inside = [signal for signal in needs if in_decoder(signal)]
    if not inside:
        if layer is not None:
            raise ValueError(
                f"read: layer={layer!r} is for signals that are read inside the language model, and needs has none of "
                "them; leave it out, or write CLS_ATTENTION.at(0) for a layer of the vision tower"
            )
        return BeforeDecoder()
    first, count = adapter.first_layer, len(adapter.decoder_layers)
    if layer is None:
        late = [signal for signal in inside if not isinstance(signal.source, FromInputs)]
        if late:
            raise ValueError(
                f"read: {late[0]} is read inside the language model; say at which decoder layer: layer={first} to "
                f"layer={count}"
            )
        layer = first
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise TypeError(f"read: layer must be an int, got {brief(layer)} of type {type(layer).__name__}")
    ahead = [signal for signal in inside if read_ahead(signal)]
    last = count - 1 if ahead else count  # what a layer that has not run would attend to needs that layer
    if not first <= layer <= last:
        reason = f", where {ahead[0]} is what that layer attends to" if ahead and layer == count else ""
        raise ValueError(
            f"read: layer must be from {first} to {last} for {type(adapter.model).__name__}, which has {count} decoder "
            f"layers{adapter.because('early') if 1 <= layer < first else reason}, got {layer}"
        )
    # After the last layer there is no other to act before: only a stage within it comes so late.
    return InDecoder(layer, mid_layer=layer == count)


def _checked(needs: object, adapter: Adapter) -> tuple[Signal, ...]:
    """The signals, when the model can supply all of them.

    Raises:
        TypeError: when they are no signals.
        UnsupportedError: naming the one that it cannot supply, and why.
    """
    if isinstance(needs, Signal):
        raise TypeError(f"read: needs must be a sequence of signals, got {needs} alone; write [{needs.name.upper()}]")
    if not isinstance(needs, Collection) or isinstance(needs, str | Mapping):
        raise TypeError(f"read: needs must be a sequence of signals, got {brief(needs)} of type {type(needs).__name__}")
    family = type(adapter.model).__name__
    for signal in needs:
        if not isinstance(signal, Signal):
            raise TypeError(
                f"read: needs must hold signals such as tokenprune.core.signals.CLS_ATTENTION, got {brief(signal)} of "
                f"type {type(signal).__name__}"
            )
        if signal in CLIP_SIGNALS and adapter.why_not(VISION_STATES) is None:
            if adapter.clip is None:
                raise UnsupportedError(
                    f"read: {signal} is read in CLIP's joint space, which {family} does not contain; pass "
                    "clip=tokenprune.models.Clip(clip_model, clip_tokenizer, question_reader(processor)) with the CLIP "
                    "model that its vision tower was made from"
                )
            adapter.clip.check(adapter)
            continue
        reason = adapter.why_not(signal)
        if reason is not None and signal.required:
            reason = reason or (adapter.because("decoder") if in_decoder(signal) else "")
            raise UnsupportedError(
                f"read: {family} cannot supply {signal}{reason}; leave it out of needs (before its language model it "
                f"has {', '.join(sorted(adapter.signals))})"
            )
    return tuple(dict.fromkeys(needs))


def _check_inside(reading: Reading, adapter: Adapter) -> None:
    """Raise unless a stage could act where the reading does.

    Raises:
        UnsupportedError: with what a stage would be refused for.
    """
    if isinstance(reading.where, BeforeDecoder):
        return
    try:
        check_strategy_fits(reading, adapter)
    except UnsupportedError as error:
        late = next(signal for signal in reading.wanted if in_decoder(signal))
        raise UnsupportedError(
            f"read: {late} cannot be read at decoder layer {reading.where.layer} of {type(adapter.model).__name__}, "
            f"where no stage can act; leave it out of needs. The reason: {error}"
        ) from error


def _prompt_arguments(inputs: object, adapter: Adapter) -> dict[str, Any]:
    """The arguments that make up the prompts.

    Raises:
        TypeError: when it is no mapping, or holds something else.
        UnsupportedError: for prompts given as embeddings, or packed into one row.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"read: inputs must be what the processor returned, a mapping with input_ids and pixel_values, got "
            f"{type(inputs).__name__}; write read(model, inputs, needs)"
        )
    refuse_embeddings(inputs, what="read")
    refuse_packed(inputs)
    known = {"input_ids", "attention_mask", "position_ids", "labels", *adapter.modality_keys, *adapter.length_keys}
    unknown = sorted(map(str, inputs.keys() - known))
    if unknown:
        raise TypeError(
            f"read: inputs holds {unknown[0]}, which is no part of a prompt; leave it out ({', '.join(sorted(known))})"
        )
    return {name: value for name, value in inputs.items() if name != "labels"}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """While open, no part of the model is in training mode, where dropout would change what is read."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
