"""Strategies by name: the built-in ones, those of installed packages, and those registered in this process."""

import importlib
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TypeVar

from tokenprune.strategy import PruningStrategy

ENTRY_POINT_GROUP = "tokenprune.strategies"

# Imported by name when first asked for: the registry is below these modules and must not depend on them.
_BUILTIN_MODULES = (
    "tokenprune.alignment",
    "tokenprune.repmax",
    "tokenprune.presets",
    "tokenprune.allocation",
    "tokenprune.tiles",
    "tokenprune.baselines",
)
_registered: dict[str, type[PruningStrategy]] = {}

S = TypeVar("S", bound=type[PruningStrategy])


def register(strategy: S) -> S:
    """Make a strategy class known to `parse` and the command line of this process; usable as a decorator.

    A package does it for every process with an entry point in the group `tokenprune.strategies`.

    Args:
        strategy: a concrete subclass of `PruningStrategy` with its own `name`.

    Raises:
        TypeError: when it is no concrete strategy class or has no name.
        ValueError: when another class has that name.
    """
    _check_class(strategy, source="register")
    known = builtin_strategies() | _registered
    other = known.get(strategy.name)
    if other is not None and _qualified(other) != _qualified(strategy):
        raise ValueError(f"register: the name {strategy.name!r} belongs to {_qualified(other)}; choose another name")
    _registered[strategy.name] = strategy
    return strategy


def strategies() -> dict[str, type[PruningStrategy]]:
    """Every known strategy class by name: built in, from entry points, registered here.

    Raises:
        ValueError: when an installed package claims a name that is taken.
        TypeError: when an entry point does not name a concrete strategy class.
    """
    known = builtin_strategies()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = point.load()
        except Exception as error:
            raise TypeError(
                f"entry point {point.name!r} ({point.value}) of {ENTRY_POINT_GROUP} failed to load: {error}"
            ) from error
        _check_class(loaded, source=f"entry point {point.name!r} ({point.value})")
        if _qualified(known.get(loaded.name, loaded)) != _qualified(loaded):
            raise ValueError(
                f"entry point {point.name!r}: the name {loaded.name!r} belongs to {_qualified(known[loaded.name])}; "
                "rename the strategy or uninstall its package"
            )
        known[loaded.name] = loaded
    return known | _registered


def builtin_strategies() -> dict[str, type[PruningStrategy]]:
    """The strategy classes that come with this package, by name."""
    found: dict[str, type[PruningStrategy]] = {}
    for module_name in _BUILTIN_MODULES:
        for value in vars(importlib.import_module(module_name)).values():
            if _is_strategy(value) and value.__module__.startswith("tokenprune."):
                found[value.name] = value
    return found


def find_strategy(name: str, known: Mapping[str, type[PruningStrategy]] | None = None) -> type[PruningStrategy]:
    """The class called `name`, which is either a strategy's name or its class name.

    Args:
        name: "greedy_repmax" or "GreedyRepMax".
        known: more classes by name, for this call only.

    Raises:
        ValueError: when nothing is called so; the message suggests the nearest names.
    """
    # Installed packages are asked only when nothing here has that name: reading all entry points takes milliseconds.
    here = builtin_strategies() | _registered | dict(known or {})
    found = _called(name, here)
    if found is not None:
        return found
    everything = strategies() | here
    found = _called(name, everything)
    if found is not None:
        return found
    near = get_close_matches(name, [*everything, *(cls.__name__ for cls in everything.values())], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(everything))}"
    raise ValueError(f"no strategy is called {name!r}; {hint} (`tokenprune strategies` lists them all)")


def _called(name: str, choices: Mapping[str, type[PruningStrategy]]) -> type[PruningStrategy] | None:
    return choices.get(name) or next((cls for cls in choices.values() if cls.__name__ == name), None)


def _is_strategy(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, PruningStrategy)
        and not inspect.isabstract(value)
        and value.__dict__.get("name") not in (None, "pipeline")
    )


def _check_class(strategy: object, *, source: str) -> None:
    if not _is_strategy(strategy):
        raise TypeError(
            f"{source}: {strategy!r} is no concrete PruningStrategy subclass with a `name` of its own; "
            "define _select and the class attribute `name`"
        )


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
