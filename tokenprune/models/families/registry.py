"""Which adapter serves a model: the built-in ones, those of installed packages, those registered in this process."""

from importlib.metadata import entry_points

from torch import nn

from tokenprune.models.families.adapter import Adapter
from tokenprune.models.families.gemma import Gemma3Adapter, PaliGemmaAdapter
from tokenprune.models.families.internvl import IdeficsAdapter, InternVLAdapter
from tokenprune.models.families.llava import LlavaAdapter
from tokenprune.models.families.llava_next import LlavaNextAdapter, LlavaOnevisionAdapter
from tokenprune.models.families.qwen import Qwen3VLAdapter, QwenVLAdapter
from tokenprune.models.wrapped.unwrap import inner_path, unwrap

ENTRY_POINT_GROUP = "tokenprune.adapters"

_BUILTIN: tuple[type[Adapter], ...] = (
    LlavaAdapter,
    LlavaNextAdapter,
    LlavaOnevisionAdapter,
    InternVLAdapter,
    IdeficsAdapter,
    QwenVLAdapter,
    Qwen3VLAdapter,
    PaliGemmaAdapter,
    Gemma3Adapter,
)
_registered: list[type[Adapter]] = []


def register_adapter(adapter: type[Adapter]) -> type[Adapter]:
    """Make an adapter class known to this process; usable as a decorator. It goes before the built-in ones.

    A package does it for every process with an entry point in the group `tokenprune.adapters`.

    Args:
        adapter: a concrete subclass of `Adapter` that names its `model_types`.

    Raises:
        TypeError: when it is no such class.
    """
    _check_class(adapter, "register_adapter")
    if adapter not in _registered:
        _registered.insert(0, adapter)
    return adapter


def adapters() -> list[type[Adapter]]:
    """Every known adapter class; the first that names a model's type serves it.

    Raises:
        TypeError: when an entry point does not name a concrete adapter class.
    """
    found = list(_registered)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        source = f"entry point {point.name!r} ({point.value}) of {ENTRY_POINT_GROUP}"
        try:
            loaded = point.load()
        except Exception as error:
            raise TypeError(f"{source} failed to load: {error}") from error
        _check_class(loaded, source)
        found.append(loaded)
    return [*found, *_BUILTIN]


def adapter_for(model: nn.Module) -> Adapter:
    """Return the adapter for a loaded model.

    Args:
        model: a transformers model with `generate`, such as `LlavaForConditionalGeneration`, or a wrapper around one
            that `tokenprune.models.wrapped.unwrap` knows; `Adapter.model` is then what is inside.

    Raises:
        TypeError: when `model` is no such model; when there is one inside, the message says where.
        ValueError: when no adapter serves its family, which says what one must supply, or when a wrapper does not call
            the model as it is.
    """
    given, model, known = model, unwrap(model), adapters()
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or kind is None:
        raise TypeError(
            f"adapter_for: model must be a loaded transformers model, got {type(given).__name__}{_way_in(model, known)}"
        )
    for adapter in known:
        if kind in adapter.model_types:
            if not isinstance(getattr(model, "model", None), nn.Module) or not hasattr(model, "generate"):
                raise TypeError(
                    f"adapter_for: {type(model).__name__} has no `generate` or no `model`; pass the whole model "
                    f"(...ForConditionalGeneration), not a part of it{_way_in(model, known)}"
                )
            return adapter(model)
    served = ", ".join(sorted({name for adapter in known for name in adapter.model_types}))
    raise ValueError(
        f"adapter_for: no adapter for the model family {kind!r} (known: {served}). An adapter is a subclass of "
        "tokenprune.models.Adapter that names model_types and modality_keys and writes encode(inputs, want) -> Vision, "
        "the projected tokens of all images in placeholder order; where the family differs from LLaVA also base, "
        "decoder, vision_tower, image_token_ids, embed_text and positions. Hand it to "
        f"tokenprune.models.register_adapter or to an entry point in the group {ENTRY_POINT_GROUP}"
    )


def _way_in(model: object, known: list[type[Adapter]]) -> str:
    """The end of an error about an object that has a supported model somewhere inside; empty when it has none."""
    path = inner_path(model, lambda kind: any(kind in adapter.model_types for adapter in known))
    return "" if path is None else f"; the model inside is its attribute {path!r}: pass that one, and call it"


def _check_class(adapter: object, source: str) -> None:
    if (
        not isinstance(adapter, type)
        or not issubclass(adapter, Adapter)
        or getattr(adapter, "__abstractmethods__", None)
        or not getattr(adapter, "model_types", None)
    ):
        raise TypeError(
            f"{source}: {adapter!r} is no concrete Adapter subclass with model_types; define encode and model_types"
        )
