"""What a call was given: its arguments by name, and its cache when it fails."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationMixin

from tokenprune.models.prompt.cache_state import INTERRUPTED, cached_length, lock


def generate_signature(method: Callable[..., Any]) -> inspect.Signature:
    """Give the signature of a `generate`; one that only passes on what it gets is taken for that of transformers."""
    signature = inspect.signature(method)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        own = inspect.signature(GenerationMixin.generate)
        return own.replace(parameters=list(own.parameters.values())[1:])
    return signature


def named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give all arguments by name: a hook that looked at keywords only would miss what is passed by position."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(parameter.name, {}))
    return bound


@contextmanager
def locked_on_error(cache: Any) -> Iterator[None]:  # noqa: ANN401
    """Lock the cache when the call fails half-way: nobody should continue it."""
    try:
        yield
    except BaseException:
        if cached_length(cache):
            lock(cache, INTERRUPTED)
        raise
