"""What is known about a key-value cache, kept on the cache itself; and a lock against continuing it unknowingly."""

from functools import partial
from typing import Any, NoReturn

from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt.turns import CachedPrompt

_STATE = "tokenprune_state"

INTERRUPTED = "an earlier call on it ended in an error"
LAYERS_DIFFER = "its layers hold different numbers of tokens, because a stage inside the decoder dropped some"


def cached_length(cache: object) -> int:
    """Number of columns in a cache; 0 for None."""
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if length is not None else 0


def lock(cache: Any, state: CachedPrompt | str) -> None:  # noqa: ANN401
    """Note what a cache holds, and let nothing be added to it until `unlock`.

    A pruned cache is shorter than the conversation. Outside a context transformers would feed old tokens again and give
    wrong answers without an error; with the lock, the first layer that adds to the cache raises. Copies carry state and
    lock along.

    Args:
        cache: a cache of transformers.
        state: what it holds, or why it cannot be continued.
    """
    attributes = vars(cache)
    attributes[_STATE] = state
    attributes["update"] = partial(refuse_state, state) if isinstance(state, str) else _locked


def unlock(cache: object) -> CachedPrompt | str | None:
    """Take the lock away.

    Returns:
        What the cache holds, or why it cannot be continued; None for a cache that was never locked.
    """
    attributes = getattr(cache, "__dict__", {})
    if _STATE in attributes:
        attributes.pop("update", None)
    return attributes.pop(_STATE, None)


def state_of(cache: object) -> CachedPrompt | str | None:
    """What `lock` noted, None when there is nothing; a cache that was emptied has no state any more."""
    if not cached_length(cache):
        unlock(cache)
    return getattr(cache, "__dict__", {}).get(_STATE)


def refuse_state(reason: str, *args: object, **kwargs: object) -> NoReturn:
    """Raise for a cache that nobody can continue; also in place of its `update`, whose arguments are not looked at.

    Raises:
        UnsupportedError: with the reason and the way out.
    """
    raise UnsupportedError(
        f"prune: these past_key_values cannot be continued: {reason}; pass the whole conversation without "
        "past_key_values"
    )


def _locked(*args: object, **kwargs: object) -> None:
    raise UnsupportedError(
        "prune: these past_key_values were filled with a pruned prompt, and are shorter than the conversation; call "
        "model.generate(**inputs, past_key_values=...) with the whole conversation inside a prune(...) context, or "
        "leave past_key_values out"
    )
