"""The transformers model inside the wrappers that people put around it.

Nothing is imported for it: a wrapper is known by the package and the name of its class or of a class above it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tokenprune.models.errors import UnsupportedError


def unwrap(model: Any) -> Any:  # noqa: ANN401
    """Return the transformers model that a wrapper calls; an object that is no known wrapper comes back as it is.

    Wrappers around wrappers are taken off one after another. Calls of the wrapper reach the model that is given back,
    so what is put on that one holds for both.

    Args:
        model: a transformers model, or one inside `torch.compile`, `DistributedDataParallel`, `DataParallel` or peft.

    Raises:
        UnsupportedError: for a wrapper that does not call the model as it is; the message says what to pass instead.
    """
    seen: set[int] = set()
    while isinstance(model, nn.Module) and id(model) not in seen:
        seen.add(id(model))
        inner = next((find(model) for kind, find in _WRAPPERS.items() if kind in _kinds(model)), None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def inner_path(model: object, serves: Callable[[str], bool]) -> str | None:
    """Where inside an unknown wrapper a whole model of a supported family is, as "module.model"; None for nowhere.

    Args:
        model: the wrapper.
        serves: says of a `model_type` whether there is an adapter for it.
    """
    if not isinstance(model, nn.Module):
        return None
    for name, part in model.named_modules():
        kind = getattr(getattr(part, "config", None), "model_type", None)
        if name and isinstance(kind, str) and serves(kind) and hasattr(part, "generate"):
            return name
    return None


def refuse_virtual_tokens(model: nn.Module) -> None:
    """Raise when a wrapper has put itself into the model's `generate`, to set virtual tokens before the prompt.

    Args:
        model: the transformers model.

    Raises:
        UnsupportedError: with the way out.
    """
    owner = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    if owner is not None and ("peft", "PeftModel") in _kinds(owner):
        raise UnsupportedError(_VIRTUAL.format(name=type(owner).__name__))


_VIRTUAL = (
    "prune: {name} sets virtual tokens before the prompt and makes the prompt's embeddings anew, which does not go "
    "with a prompt whose visual tokens were dropped; use an adapter that changes weights (LoRA and the like), or call "
    "it outside the context"
)


def _kinds(model: object) -> Iterator[tuple[str, str]]:
    """(package, class name) of an object's class and of those above it."""
    for kind in type(model).__mro__:
        yield kind.__module__.partition(".")[0], kind.__name__


def _compiled(wrapper: Any) -> Any:  # noqa: ANN401
    return wrapper._orig_mod


def _module(wrapper: Any) -> Any:  # noqa: ANN401
    return wrapper.module


def _data_parallel(wrapper: Any) -> Any:  # noqa: ANN401
    if len(wrapper.device_ids) > 1:
        raise UnsupportedError(
            f"prune: DataParallel on {len(wrapper.device_ids)} devices makes copies of the model in each call, and a "
            "context is open on one model only; give it one device (device_ids=[0]), use DistributedDataParallel with "
            "one process per device, or pass wrapper.module and call that one"
        )
    return wrapper.module


def _peft(wrapper: Any) -> Any:  # noqa: ANN401
    config = getattr(wrapper, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise UnsupportedError(_VIRTUAL.format(name=type(wrapper).__name__))
    return wrapper.get_base_model()


def _mixed(wrapper: Any) -> Any:  # noqa: ANN401
    return wrapper.base_model


def _tuner(wrapper: Any) -> Any:  # noqa: ANN401
    return wrapper.model


def _sharded(wrapper: Any) -> Any:  # noqa: ANN401
    raise UnsupportedError(
        f"prune: {type(wrapper).__name__} has whole weights only while its own forward runs, but images are encoded "
        "before that; use DistributedDataParallel, or gather the weights into one model and pass that"
    )


_WRAPPERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("torch", "OptimizedModule"): _compiled,
    ("torch", "DistributedDataParallel"): _module,
    ("torch", "DataParallel"): _data_parallel,
    ("torch", "FullyShardedDataParallel"): _sharded,
    ("peft", "PeftModel"): _peft,
    ("peft", "PeftMixedModel"): _mixed,
    ("peft", "BaseTuner"): _tuner,
}
"""For (package, class name) of a wrapper: how its model is found."""
