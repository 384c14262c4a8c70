"""`@strategy`: a class becomes a frozen dataclass whose fields are checked by their annotations."""

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from tokenprune import arguments
from tokenprune.arguments import LARGEST, brief
from tokenprune.core import registry

T = TypeVar("T")
_STATEMENTS = frozenset({"needs", "place", "yields", "promises", "example"})


def check_layer(value: object, *, owner: str, parameter: str = "layer") -> int:
    """Return a decoder layer, or raise an error that names owner, parameter and value."""
    wanted = f"{owner}: {parameter} must be an int of at least 1 (the first decoder layer with fewer tokens)"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}")
    if not 1 <= value < LARGEST:
        way_out = "; to drop before the language model choose a strategy that acts there" if value < 1 else ""
        raise ValueError(f"{wanted}, got {brief(value)}{way_out}")
    return value


def check_count(value: object, *, owner: str, parameter: str) -> int:
    """Return an int of 0 or more, or raise an error that names owner, parameter and value."""
    arguments.check_int(owner, parameter, value)
    return cast("int", value)


def check_seed(value: object, *, owner: str, parameter: str = "seed") -> int:
    """Return an int that NumPy's and torch's generators take, or raise an error that names owner and value."""
    arguments.check_int(owner, parameter, value, below=2**63)
    return cast("int", value)


def check_share(value: object, *, owner: str, parameter: str) -> float:
    """Return a number in [0, 1], or raise an error that names owner, parameter and value."""
    return arguments.check_real(owner, parameter, value, 0, 1)


def check_layers(value: object, *, owner: str, parameter: str = "layers") -> tuple[int, ...]:
    """Return ascending decoder layers as a tuple, or raise an error that names owner, parameter and value."""
    return arguments.check_layers(owner, value, example=(8, 16, 24), parameter=parameter)


def check_choice(owner: str, parameter: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError that names owner, parameter, value and the choices, unless `value` is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{owner}: {parameter} must be one of {', '.join(map(repr, choices))}, got {brief(value)}")


Layer: TypeAlias = Annotated[int, check_layer]
"""The first decoder layer that gets fewer tokens, counted from 0, at least 1."""
Layers: TypeAlias = Annotated[tuple[int, ...], check_layers]
"""Such layers, ascending; a list becomes a tuple."""
Count: TypeAlias = Annotated[int, check_count]
"""An int of 0 or more."""
Seed: TypeAlias = Annotated[int, check_seed]
"""An int from 0 to 2^63 - 1."""
Share: TypeAlias = Annotated[float, check_share]
"""A number in [0, 1]."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strategy(name: str, *, paper: str = "", register: bool = True) -> Callable[[type[T]], type[T]]:
    """Make a class a strategy: a frozen dataclass, its fields checked by their annotations, known to `parse`.

    Fields without a default, and the first one, may be given by position; the others need their names. Checked are
    `Keep`, `Layer`, `Count`, `Share`, `Literal[...]`, bool, int, float, str, classes, and unions of them; further
    `Annotated[type, check]` with a function `check(value, owner=..., parameter=...)` that returns the value. A
    `__post_init__` of the class runs afterwards.

    Args:
        name: what `parse`, the command line and result ids call it (snake_case, unique).
        paper: where the method comes from; "" for controls.
        register: False to keep it from `parse`, for classes of a single test.

    Raises:
        TypeError: when the class is abstract, or overrides what is final.
        ValueError: when the name is no snake_case identifier or belongs to another class.
    """

    def decorate(cls: type[T]) -> type[T]:
        if not name.isidentifier() or name != name.lower():
            raise ValueError(f"{cls.__name__}: name must be snake_case, got {name!r}")
        made = _dataclass(cls, name, paper)
        getattr(made, "_check_class", lambda: None)()
        if register:
            registry.add(made, name)
        return made

    return decorate


def _dataclass(cls: type[T], name: str, paper: str) -> type[T]:
    own: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def post_init(self: Any) -> None:  # noqa: ANN401
        check_fields(self)
        if own is not None:
            own(self)
        self._check_built()

    attributes: Any = cls
    attributes.name, attributes.paper, attributes.__post_init__ = name, paper, post_init
    written = inspect.get_annotations(cls)
    for statement in _STATEMENTS & written.keys():  # what a class says of itself is no part of its configuration
        written[statement] = ClassVar[Any]
    attributes.__annotations__ = written
    annotations = {key: kind for key, kind in written.items() if not _is_class_var(kind)}
    options = [key for key in annotations if key in cls.__dict__] if KW_ONLY not in annotations.values() else []
    for option in options:
        default = cls.__dict__[option]
        if option != next(iter(annotations)) and not isinstance(default, Field):
            setattr(cls, option, field(default=default, kw_only=True))
    return dataclass(frozen=True, repr=False, eq=False)(cls)


def check_fields(instance: Any) -> None:  # noqa: ANN401
    """Check every field of a dataclass by its annotation, and put in its place what the check returns."""
    cls = type(instance)
    if "_hints" not in cls.__dict__:
        cls._hints = get_type_hints(cls, include_extras=True)
    for each in fields(instance):
        value = getattr(instance, each.name)
        checked = check_value(cls._hints[each.name], value, owner=cls.__name__, parameter=each.name)
        if checked is not value:
            object.__setattr__(instance, each.name, checked)


def check_value(annotation: Any, value: Any, *, owner: str, parameter: str) -> Any:  # noqa: ANN401
    """Return a value that fits an annotation, or raise an error that names owner, parameter and value.

    Examples:
        >>> check_value(Literal["a", "b"] | None, "c", owner="Demo", parameter="mode")
        Traceback (most recent call last):
        ValueError: Demo: mode must be one of 'a', 'b', got 'c'
    """
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if value is None and type(None) in options:
        return None
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if any(type(value) is type(word) and value == word for word in words):
        return value
    for option in options:
        if get_origin(option) is Annotated:
            checks = [check for check in get_args(option)[1:] if callable(check)]
            for check in checks:
                value = check(value, owner=owner, parameter=parameter)
            if checks:
                return value
    kinds = [option for option in options if isinstance(option, type) and option is not type(None)]
    open_ended = len(kinds) < len([o for o in options if o is not type(None) and get_origin(o) is not Literal])
    if open_ended or any(_is_a(value, kind) for kind in kinds):
        return _built_in(value)
    if words and not kinds:
        check_choice(owner, parameter, value, words)
    others = " or ".join(f"{'an' if kind is int else 'a'} {kind.__name__}" for kind in kinds)
    if words and isinstance(value, str):
        names = ", ".join(map(repr, words))
        raise ValueError(f"{owner}: {parameter} must be one of {names} or {others}, got {brief(value)}")
    raise TypeError(f"{owner}: {parameter} must be {others}, got {brief(value)} of type {type(value).__name__}")


def _is_a(value: object, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _built_in(value: Any) -> Any:  # noqa: ANN401
    """The same number or string as Python's own: others have a text form that `parse` does not read."""
    own = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), type(value))
    return value if type(value) is own else own(value)


def _is_class_var(annotation: object) -> bool:
    return get_origin(annotation) is ClassVar or (isinstance(annotation, str) and "ClassVar" in annotation)
