"""Strategy classes by name: those of this package, those of this process, those of installed packages."""

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

ENTRY_POINT_GROUP = "tokenprune.strategies"
PACKAGE = __name__.partition(".")[0]

# Imported by name when first asked for: the registry is below these modules and must not depend on them.
_BUILTIN_MODULES = tuple(
    f"{PACKAGE}.{name}" for name in ("trimtokenator", "repmax", "core.wrappers", "core.shared_budget", "baselines")
)
_builtin: dict[str, type] = {}
_registered: dict[str, type] = {}


def add(cls: type, name: str) -> None:
    """Make a class known by its name in this process.

    A class that is defined again (a notebook's cell that runs twice) takes the place of its former self.

    Raises:
        ValueError: when another class has that name.
    """
    mine = _builtin if cls.__module__.startswith(f"{PACKAGE}.") else _registered
    other = _builtin.get(name) or _registered.get(name)
    if other is not None and qualified(other) != qualified(cls):
        raise ValueError(f"{cls.__name__}: the name {name!r} belongs to {qualified(other)}; choose another name")
    mine[name] = cls


def builtin() -> dict[str, type]:
    """Return the strategy classes that come with this package, by name."""
    for module in _BUILTIN_MODULES:
        importlib.import_module(module)
    for name, cls in _builtin.items():
        if name in _registered:
            raise ValueError(f"the name {name!r} belongs to {qualified(cls)}; rename {qualified(_registered[name])}")
    return dict(_builtin)


@cache
def installed() -> Mapping[str, type]:
    """Return the strategy classes of installed packages, by name; read once in a process.

    Raises:
        ValueError: when a package claims a name that is taken.
        TypeError: when an entry point does not name a strategy class.
    """
    found: dict[str, type] = {}
    here = builtin()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        where = f"entry point {point.name!r} ({point.value})"
        try:
            cls = point.load()
        except Exception as error:
            raise TypeError(f"{where} of {ENTRY_POINT_GROUP} failed to load: {error}") from error
        name = cls.__dict__.get("name") if isinstance(cls, type) else None
        if not isinstance(name, str):
            raise TypeError(f'{where}: {cls!r} is no strategy class; decorate a class with @strategy("its_name")')
        other = here.get(name) or found.get(name)
        if other is not None and qualified(other) != qualified(cls):
            raise ValueError(
                f"{where}: the name {name!r} belongs to {qualified(other)}; "
                "rename the strategy or uninstall its package"
            )
        found[name] = cls
    return found


def everything() -> dict[str, type]:
    """Return every known strategy class by name: built in, installed, registered here."""
    return {**builtin(), **installed(), **_registered}


def find(name: str, known: Mapping[str, type] | None = None) -> type:
    """Find the class of a name, which is either a strategy's name or its class name.

    Args:
        name: "greedy_repmax" or "GreedyRepMax".
        known: more classes by name, for this call only.

    Raises:
        ValueError: when nothing is called so; the message suggests the nearest names.
    """
    # Installed packages are asked only when nothing here has that name: reading all entry points takes milliseconds.
    found = _called(name, {**builtin(), **_registered, **(known or {})})
    found = found or _called(name, installed())
    if found is not None:
        return found
    choices = {**everything(), **(known or {})}
    near = get_close_matches(name, [*choices, *(cls.__name__ for cls in choices.values())], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(choices))}"
    raise ValueError(f"no strategy is called {name!r}; {hint} (`tokenprune strategies` lists them all)")


def qualified(cls: type) -> str:
    """Return module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _called(name: str, choices: Mapping[str, type]) -> type | None:
    return choices.get(name) or next((cls for cls in choices.values() if cls.__name__ == name), None)
