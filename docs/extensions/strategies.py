"""Signatures of strategies for the API pages: `@strategy` makes a dataclass, which static analysis cannot see."""

from typing import Any

from griffe import Attribute, Class, Expr, Extension, Function, Module, Parameter, ParameterKind, Parameters

DECORATOR = "tokenprune.core.fields.strategy"


class Strategies(Extension):
    """Gives every class under `@strategy` the `__init__` that the decorator makes of its annotated attributes."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:  # noqa: ANN401
        """Add the methods once the whole package is read."""
        for class_ in _classes(pkg, set()):
            if _is_strategy(class_) and "__init__" not in class_.members:
                class_.set_member("__init__", _init(class_))


def _classes(holder: Module | Class, seen: set[str]) -> list[Class]:
    if holder.canonical_path in seen:
        return []
    seen.add(holder.canonical_path)
    found = [holder] if isinstance(holder, Class) else []
    for member in holder.members.values():
        if isinstance(member, Module | Class):
            found += _classes(member, seen)
    return found


def _is_strategy(class_: Class) -> bool:
    return any(
        isinstance(one.value, Expr) and one.value.canonical_path.split("(")[0] == DECORATOR for one in class_.decorators
    )


def _init(class_: Class) -> Function:
    """`__init__` with the fields of the class and of the strategies that it is made from, first ones first."""
    fields: dict[str, Attribute] = {}
    for owner in (*reversed(class_.mro()), class_):
        if _is_strategy(owner):
            fields |= {
                name: member
                for name, member in owner.members.items()
                if isinstance(member, Attribute)
                and member.annotation is not None
                and "instance-attribute" in member.labels  # a ClassVar is none, nor is a property
            }
    parameters = [
        Parameter(name, annotation=one.annotation, kind=ParameterKind.positional_or_keyword, default=one.value)
        for name, one in fields.items()
    ]
    own = Parameter("self", annotation=None, kind=ParameterKind.positional_or_keyword, default=None)
    return Function("__init__", parameters=Parameters(own, *parameters), returns="None", parent=class_)
