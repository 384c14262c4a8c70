"""What the language model gets beside embeddings: features that its first layers add to the visual tokens."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.installed import Installed


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
    fired: list[bool] = []
    shift = pruned.following - 1 - pruned.positions[..., -1]  # (b,) or (axes, b)

    def hook(kwargs: dict[str, Any]) -> dict[str, Any]:
        fired.append(True)
        positions = kwargs["position_ids"].clone()  # (b, k) or (axes, b, k)
        copies = positions.shape[-2] // shift.shape[-1]
        positions[..., -1] -= shift.repeat_interleave(copies, dim=-1).to(positions.device)
        return {"position_ids": positions}

    with ExitStack() as stack:
        _hook_next_forward(adapter, hook, stack)
        yield
        if not fired:
            raise RuntimeError(
                "prune: the position of a prompt's last token did not reach the language model: it was not called as "
                "usual; call model.generate(...)"
            )


@contextmanager
def injected(adapter: Adapter, pruned: PrunedPrompt) -> Iterator[None]:
    """While open, the next forward of the language model in this thread adds `pruned.deepstack` to the visual tokens.

    Does nothing for models without such features. Needed around every call of a model with a pruned prompt; `prune`
    does it.

    Raises:
        RuntimeError: at the end, when the language model was not reached.
    """
    with ExitStack() as stack:
        fired = inject(adapter, pruned, stack)
        yield
        if pruned.deepstack is not None:
            check_injected(fired)


def check_injected(fired: list[bool]) -> None:
    """Raise unless the features have been added, by what `inject` returned.

    Raises:
        RuntimeError: when the language model was not reached.
    """
    if not fired:
        raise RuntimeError(
            "prune: features that the language model adds to the visual tokens did not reach it: it was not called as "
            "usual; call model.generate(...) or model(...)"
        )


def inject(adapter: Adapter, pruned: PrunedPrompt, stack: ExitStack) -> list[bool]:
    """`injected` for a call that begins here and ends elsewhere, where `stack` is closed.

    Returns:
        A list with one entry as soon as the features have been added.
    """
    rows, features, fired = pruned.feature_rows, pruned.deepstack, list[bool]()
    if rows is None or features is None:
        return fired

    def hook(kwargs: dict[str, Any]) -> dict[str, Any]:
        fired.append(True)
        length = kwargs["inputs_embeds"].shape
        wanted = rows[:, rows.shape[1] - length[1] :]  # without the part that is in a cache
        wanted = wanted.repeat_interleave(length[0] // wanted.shape[0], dim=0)
        visual = wanted >= 0
        return {"visual_pos_masks": visual, "deepstack_visual_embeds": list(features[:, wanted[visual]])}

    _hook_next_forward(adapter, hook, stack)
    return fired


def _hook_next_forward(adapter: Adapter, change: Callable[[dict[str, Any]], dict[str, Any]], stack: ExitStack) -> None:
    """Change arguments of the language model's next forward in this thread; the steps that follow are as they are."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        if threading.get_ident() != thread:
            return None
        handle.remove()
        return args, {**kwargs, **change(kwargs)}

    # Before the caller's own hooks, which then see what the language model gets.
    handle = adapter.decoder.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    stack.callback(handle.remove)
