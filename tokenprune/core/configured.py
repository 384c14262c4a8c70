"""What a strategy's configuration is good for: its text, equality, and changed copies."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

_C = TypeVar("_C", bound="Configured")


class Configured:
    """A frozen dataclass with a name, made of one or more such `stages`.

    Attributes:
        name: what `parse`, the command line and result ids call it.
    """

    name: ClassVar[str]

    @property
    def stages(self) -> "Sequence[Configured]":
        """What it is made of; itself when it is one thing."""
        return (self,)

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring, without its full stop."""
        return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    def _with(self: _C, name: str, value: object, lacking: str) -> _C:
        if not is_dataclass(self) or name not in {each.name for each in fields(self)}:
            raise ValueError(f"{self!r} has {lacking}")
        return replace(self, **{name: value})

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Configured) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return tuple((type(stage), *map(_typed, _compared(stage))) for stage in self.stages)

    def __repr__(self) -> str:
        """The configuration, as `parse` reads it: required fields and those that differ from their default."""
        shown: list[str] = []
        for each in cast("Any", fields(self) if is_dataclass(self) else ()):
            value = getattr(self, each.name)
            if each.default is MISSING or type(value) is not type(each.default) or value != each.default:
                shown.append(f"{each.name}={value!r}")
        return f"{self.name}({', '.join(shown)})"


def _compared(stage: Configured) -> list[object]:
    every: Any = fields(stage) if is_dataclass(stage) else ()
    return [getattr(stage, each.name) for each in every if each.compare]


def _typed(value: object) -> tuple[Any, ...]:
    """A value with its types: Python takes keep=1, one token, for equal to keep=1.0, all of them."""
    return tuple(map(_typed, value)) if isinstance(value, tuple) else (type(value), value)
