"""What the language model gets beside embeddings: features that its first layers add to the visual tokens."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.installed import Installed, hooked


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


@contextmanager
def _next_forward(adapter: Adapter, change: Callable[[dict[str, Any]], dict[str, Any]], what: str) -> Iterator[None]:
    """While open, change arguments of the language model's next forward in this thread, and of no other.

    Args:
        adapter: the model's adapter.
        change: takes the call's keywords and gives those that are others.
        what: what the change brings, for the error.

    Raises:
        RuntimeError: at the end, when there was no such forward.
    """
    thread, fired = threading.get_ident(), list[bool]()

    # No keywords: for other threads, see `hooked`.
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        if kwargs is None or threading.get_ident() != thread:
            return None
        stack.close()  # the steps that follow are as they are
        fired.append(True)
        return args, {**kwargs, **change(kwargs)}

    with ExitStack() as stack:
        # Before the caller's own hooks, which then see what the language model gets.
        stack.enter_context(hooked(adapter.decoder, hook, with_kwargs=True, first=True))
        yield
        if not fired:
            raise RuntimeError(
                f"prune: {what} did not reach the language model: it was not called as usual; call model.generate(...) "
                "or model(...)"
            )
