"""Copies of a model inside a `prune` context are refused: they would run the original's weights."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn


def refuse_copy(*args: object) -> NoReturn:
    """Stands in for the methods by which Python copies and pickles an object.

    Raises:
        RuntimeError: with the way out.
    """
    raise RuntimeError(
        "prune: a model cannot be copied, pickled or saved as a whole (copy, deepcopy, pickle, torch.save) while it is "
        "being pruned: the copy would go on calling the original. Leave the prune context first; inside it, save "
        "model.state_dict() or call model.save_pretrained(folder)"
    )


class NoCopy:
    """An object that belongs to one open context, and is reached through the hooks on the model's parts."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        refuse_copy()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse_copy()


class Shadow(NoCopy):
    """What hides a method of the model: it has the signature and documentation of that one, and calls another function.

    Args:
        plain: the model's own method.
        instead: what is called with its arguments.
    """

    def __init__(self, plain: Callable[..., Any], instead: Callable[..., Any]) -> None:
        functools.update_wrapper(self, plain)
        self.instead = instead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call what stands in for the method."""
        return self.instead(*args, **kwargs)
