"""Models whose weights accelerate brings in only while a module runs (`device_map`, CPU and disk offload)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """While open, an offloaded module has its own weights where it computes; other modules are left as they are.

    Modules bring in their weights when they are called. A method that is called instead, such as `get_image_features`,
    finds the weights of its own module (a newline token's embedding) missing.

    Args:
        module: the module whose method is about to be called; those inside it see to themselves.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
