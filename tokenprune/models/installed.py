"""What a `prune` context has on a model, and whether it is still there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


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
        after: Sequence[tuple[nn.Module, Callable[..., Any], bool]],
        attributes: Mapping[str, Any],
    ) -> Iterator[None]:
        """Everything is in its place until the end, and is taken away then, whatever happens.

        Args:
            before: forward pre-hooks, with keywords.
            after: forward hooks, and whether they are called after an error too.
            attributes: instance attributes of the model, which hide those of its class.
        """
        with ExitStack() as stack:
            for module, hook in before:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
                self.hooks.append((module._forward_pre_hooks, handle.id, hook))
            for module, hook, always in after:
                handle = module.register_forward_hook(hook, always_call=always)
                stack.callback(handle.remove)
                self.hooks.append((module._forward_hooks, handle.id, hook))
            own = vars(self.model)
            for name, value in attributes.items():
                if name in own:
                    stack.callback(own.__setitem__, name, own[name])
                else:
                    stack.callback(own.pop, name, None)
                own[name] = self.attributes[name] = value
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
