"""What a `prune` context has on a model, and whether it is still there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(
    module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False, first: bool = False
) -> Iterator[None]:
    """While open, a forward pre-hook is on a module that other threads may be running at the same time.

    The hook is called in those threads, too, and must look which one it is in. One that was removed while another
    thread was calling the module's hooks may be called without the keywords that it asked for: they need a default.

    Args:
        module: any module.
        hook: called before the module's forward.
        with_kwargs: the hook gets keyword arguments, too.
        first: it is called before the hooks that are on the module already.
    """
    handle = module.register_forward_pre_hook(hook, prepend=first, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        handle.remove()


class Installed:
    """Hooks and instance attributes on one model.

    Args:
        model: the whole model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.hooks: list[tuple[Mapping[int, Any], int, Any]] = []
        self.attributes: dict[str, Any] = {}

    @contextmanager
    def standing(
        self,
        before: Sequence[tuple[nn.Module, Callable[..., Any]]],
        after: Sequence[tuple[nn.Module, Callable[..., Any]]],
        attributes: Mapping[str, Any],
        wrapped: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:
        """Everything is in its place until the end, and is taken away then, whatever happens.

        Args:
            before: forward pre-hooks, with keywords.
            after: forward hooks.
            attributes: instance attributes of the model, which hide those of its class.
            wrapped: more of them, around which others may put wrappers of their own meanwhile, as accelerate does with
                `forward`; such a wrapper stays.
        """
        with ExitStack() as stack:
            for module, hook in before:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
                self.hooks.append((module._forward_pre_hooks, handle.id, hook))
            for module, hook in after:
                handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
                self.hooks.append((module._forward_hooks, handle.id, hook))
            self.attributes.update(attributes)
            for name, value in attributes.items():
                stack.enter_context(_attribute(vars(self.model), name, value))
            for name, value in (wrapped or {}).items():
                stack.enter_context(_attribute(vars(self.model), name, value, only_ours=True))
            self.check("could not be put on the model")
            yield

    def check(self, problem: str) -> None:
        """Raise unless everything that catches calls is in its place.

        Args:
            problem: what to say happened to the hooks.

        Raises:
            RuntimeError: when something is missing or has been replaced.
        """
        own = vars(self.model)
        hooks = all(found.get(key) == hook for found, key, hook in self.hooks)
        if not hooks or any(own.get(name) is not value for name, value in self.attributes.items()):
            raise RuntimeError(f"prune: the hooks of this context {problem}")


@contextmanager
def _attribute(own: dict[str, Any], name: str, value: object, *, only_ours: bool = False) -> Iterator[None]:
    """While open, an instance has an attribute; afterwards what was there, unless `only_ours` and it was replaced."""
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        if own.get(name) is value or not only_ours:
            own.pop(name, None)
            own.update(before)
