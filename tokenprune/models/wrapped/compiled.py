"""What keeps `torch.compile` and the pruning apart: nothing of the pruning is traced, and no graph forgets it.

A compiled graph does not look again whether a module has hooks (`torch._dynamo.config.skip_nnmodule_hook_guards`): a
graph that was made before a context was opened would go on past the context's hooks. It does look whether a module has
a `forward` of its own, so each module with hooks gets one for as long as the context is open.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

REASON = (
    "tokenprune chooses tokens in plain Python, outside of compiled graphs; compile without fullgraph=True, or leave "
    "the context for calls that must be one graph"
)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function, and all that it calls, out of what `torch.compile` traces: it runs as it is, between two graphs.

    So times that are taken inside are those of the work, never of tracing it.

    Args:
        function: a function or method.
    """
    kept: Callable[P, R] = torch.compiler.disable(function, reason=REASON)
    return kept


@contextmanager
def seen_by_graphs(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, compiled graphs that call one of the modules are made anew, with the hooks that it has now.

    Each gets a `forward` of its own that calls the one that it had.

    Args:
        modules: those that have hooks; repeated ones count once.
    """
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            own = vars(module)
            passing = _passing(module.forward)
            stack.callback(_put_back, own, passing, own.get("forward"))
            own["forward"] = passing
        yield


def _passing(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A new function that calls `plain`; transformers reads signatures, which stay the same."""

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return plain(*args, **kwargs)

    return forward


def _put_back(own: dict[str, Any], passing: Callable[..., Any], before: Callable[..., Any] | None) -> None:
    """Take `passing` away, unless somebody has put another `forward` over it meanwhile."""
    if own.get("forward") is not passing:
        return
    if before is None:
        del own["forward"]
    else:
        own["forward"] = before
