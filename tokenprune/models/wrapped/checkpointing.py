"""Gradient checkpointing: layers that are computed again in the backward pass, when nothing here is around any more.

Whatever changes the arguments of a layer must do so outside of what is computed again, so that both passes get the
same. Where transformers runs forward pre-hooks of a layer inside of it (5.17), they act around its checkpointing
function.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]
Arrange = Callable[[tuple[Any, ...], dict[str, Any]], LayerCall | None]
"""From a layer's arguments to those that it gets instead; None leaves them."""


def checkpointed(layer: nn.Module) -> bool:
    """True when the layer's next forward would be computed again in the backward pass."""
    return layer.training and bool(getattr(layer, "gradient_checkpointing", False))


def without_graph(layer: nn.Module) -> bool:
    """True when the first pass of a checkpointed layer records nothing (`use_reentrant=True`).

    Then what is read inside of the layer on the way is not connected to the model.
    """
    options = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    return checkpointed(layer) and bool(options.get("use_reentrant"))


def can_arrange(layer: nn.Module) -> bool:
    """True when the layer is checkpointed by transformers' own class, which `arranged_outside` knows."""
    return isinstance(layer, GradientCheckpointingLayer)


@contextmanager
def not_checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While open, these layers remember what the backward pass needs."""
    with ExitStack() as stack:
        for layer in layers:
            if checkpointed(layer):
                stack.callback(setattr, layer, "gradient_checkpointing", True)
                layer.gradient_checkpointing = False  # type: ignore[assignment]
        yield


@contextmanager
def arranged_outside(layer: nn.Module, arrange: Arrange, within: Callable[[], Any]) -> Iterator[None]:
    """While open, a checkpointed layer gets other arguments, which it also gets when it is computed again.

    Args:
        layer: a decoder layer; nothing happens unless it is checkpointed.
        arrange: makes the arguments.
        within: makes a context in which the first of the two passes runs.
    """
    if not checkpointed(layer):
        yield
        return
    own = vars(layer)
    plain = own["_gradient_checkpointing_func"]

    def checkpoint(call: Any, *args: Any) -> Any:  # noqa: ANN401
        changed = arrange(args, call.keywords)
        if changed is not None:
            args, keywords = changed
            call = functools.partial(call.func, *call.args, **keywords)
        with within():
            return plain(call, *args)

    own["_gradient_checkpointing_func"] = checkpoint
    try:
        yield
    finally:
        own["_gradient_checkpointing_func"] = plain
