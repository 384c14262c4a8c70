"""What the language model gets beside embeddings: features that its first layers add to the visual tokens."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.compiled import outside_graphs
from tokenprune.models.installed import Installed


@contextmanager
def ready(adapter: Adapter, pruned: PrunedPrompt) -> Iterator[None]:
    """For calling `generate` with a pruned prompt outside of `prune`: all that the model needs beside arguments.

    Not for two threads at once on one model.
    """
    with Installed(adapter.model).standing((), (), adapter.shadows()), injected(adapter, pruned):
        yield


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
    place = (id(adapter.decoder), threading.get_ident())

    def add(kwargs: dict[str, Any]) -> dict[str, Any]:
        close()  # the steps that follow have no visual tokens
        fired.append(True)
        length = kwargs["inputs_embeds"].shape
        wanted = rows[:, rows.shape[1] - length[1] :]  # without the part that is in a cache
        wanted = wanted.repeat_interleave(length[0] // wanted.shape[0], dim=0)
        visual = wanted >= 0
        return {**kwargs, "visual_pos_masks": visual, "deepstack_visual_embeds": list(features[:, wanted[visual]])}

    def close() -> None:
        handle.remove()
        if _waiting.get(place) is add:
            del _waiting[place]

    _waiting[place] = add
    handle = adapter.decoder.register_forward_pre_hook(_on_decoder, with_kwargs=True)
    stack.callback(close)
    return fired


_waiting: dict[tuple[int, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For a language model and a thread: what its next forward is given."""


@outside_graphs
def _on_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Before the language model. One function for all calls: compiled graphs do not see that hooks have changed."""
    add = _waiting.get((id(module), threading.get_ident()))
    return None if add is None else (args, add(kwargs))
