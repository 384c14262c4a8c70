"""What the language model gets beside embeddings: features that its first layers add to the visual tokens."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.installed import Installed, hooked


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
    rows, features = pruned.feature_rows, pruned.deepstack
    if rows is None or features is None:
        yield
        return
    thread, fired = threading.get_ident(), list[bool]()

    # No keywords: for other threads, see `hooked`.
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        if kwargs is None or threading.get_ident() != thread:
            return None
        stack.close()  # the steps that follow have no visual tokens
        fired.append(True)
        length = kwargs["inputs_embeds"].shape
        wanted = rows[:, rows.shape[1] - length[1] :]  # without the part that is in a cache
        wanted = wanted.repeat_interleave(length[0] // wanted.shape[0], dim=0)
        visual = wanted >= 0
        added = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(features[:, wanted[visual]])}
        return args, {**kwargs, **added}

    with ExitStack() as stack:
        stack.enter_context(hooked(adapter.decoder, hook, with_kwargs=True))
        yield
        if not fired:
            raise RuntimeError(
                "prune: features that the language model adds to the visual tokens did not reach it: it was not called "
                "as usual; call model.generate(...) or model(...)"
            )
