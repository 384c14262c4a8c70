"""What the language model gets beside embeddings: features that its first layers add to the visual tokens."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tokenprune.models.families.adapter import Adapter
from tokenprune.models.hooks import Installed
from tokenprune.models.prompt.pruned import PrunedPrompt
from tokenprune.models.wrapped.compiled import outside_graphs


@contextmanager
def ready(adapter: Adapter, pruned: PrunedPrompt) -> Iterator[None]:
    """For calling `generate` with a pruned prompt outside of `prune`: all that the model needs beside arguments.

    The arguments are `pruned.generate_kwargs(placed=True)`. Not for two threads at once on one model.
    """
    standing = Installed(adapter.model).standing((), (), adapter.shadows())
    with standing, placed(adapter, pruned), injected(adapter, pruned):
        yield


@contextmanager
def placed(adapter: Adapter, pruned: PrunedPrompt) -> Iterator[None]:
    """While open, the next forward of the language model in this thread gets the last token's own position.

    `generate` counts on from the last position that it is given, with every cache, for beams and in compiled steps. So
    `PrunedPrompt.generate_kwargs` gives it the one before that of the next token. Where a prompt ends in an image whose
    last tokens were dropped, that is not the last token's own.

    Raises:
        RuntimeError: at the end, when the language model was not reached.
    """
    if pruned.following is None:
        yield
        return
    shift = pruned.following - 1 - pruned.positions[..., -1]  # (b,) or (axes, b)

    def change(kwargs: dict[str, Any]) -> dict[str, Any]:
        positions = kwargs["position_ids"].clone()  # (b, k) or (axes, b, k)
        copies = positions.shape[-2] // shift.shape[-1]
        positions[..., -1] -= shift.repeat_interleave(copies, dim=-1).to(positions.device)
        return {"position_ids": positions}

    with _next_forward(adapter, change, "the position of a prompt's last token"):
        yield


@contextmanager
def injected(adapter: Adapter, pruned: PrunedPrompt) -> Iterator[None]:
    """While open, the next forward of the language model in this thread adds `pruned.deepstack` to the visual tokens.

    Does nothing for models without such features. Needed around every call of a model with a pruned prompt; `prune`
    does it.

    Raises:
        RuntimeError: at the end, when the language model was not reached.
    """
    rows, features = pruned.feature_rows, pruned.deepstack
    if rows is None or features is None:
        yield
        return

    def change(kwargs: dict[str, Any]) -> dict[str, Any]:
        length = kwargs["inputs_embeds"].shape
        wanted = rows[:, rows.shape[1] - length[1] :]  # without the part that is in a cache
        wanted = wanted.repeat_interleave(length[0] // wanted.shape[0], dim=0)
        visual = wanted >= 0
        return {"visual_pos_masks": visual, "deepstack_visual_embeds": list(features[:, wanted[visual]])}

    with _next_forward(adapter, change, "what the language model adds to the visual tokens"):
        yield


Change = Callable[[dict[str, Any]], dict[str, Any]]
_waiting: dict[tuple[int, int], list[tuple[RemovableHandle, Change]]] = {}
"""For a language model and a thread: what its next forward is given, and the hooks that go then."""


@contextmanager
def _next_forward(adapter: Adapter, change: Change, what: str) -> Iterator[None]:
    """While open, change arguments of the language model's next forward in this thread, and of no other.

    Args:
        adapter: the model's adapter.
        change: takes the call's keywords and gives those that are others.
        what: what the change brings, for the error.

    Raises:
        RuntimeError: at the end, when there was no such forward.
    """
    place, fired = (id(adapter.decoder), threading.get_ident()), list[bool]()

    def once(kwargs: dict[str, Any]) -> dict[str, Any]:
        fired.append(True)
        return change(kwargs)

    # Before the caller's own hooks, which then see what the language model gets.
    handle = adapter.decoder.register_forward_pre_hook(_on_decoder, prepend=True, with_kwargs=True)
    _waiting.setdefault(place, []).append((handle, once))
    try:
        yield
    finally:
        handle.remove()
        left = [entry for entry in _waiting.pop(place, []) if entry[0] is not handle]
        if left:
            _waiting[place] = left
    if not fired:
        raise RuntimeError(
            f"prune: {what} did not reach the language model: it was not called as usual; call model.generate(...) "
            "or model(...)"
        )


@outside_graphs
def _on_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
    """Called before the language model. One function for all calls: compiled graphs do not see that hooks changed.

    A hook that another thread removes while this one calls the hooks comes without keywords.
    """
    waiting = None if kwargs is None else _waiting.pop((id(module), threading.get_ident()), None)
    if kwargs is None or waiting is None:
        return None
    for handle, change in waiting:
        handle.remove()  # the steps that follow are as they are
        kwargs = {**kwargs, **change(kwargs)}
    return args, kwargs
