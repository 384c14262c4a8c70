"""JSON from outside: read strictly, and every fault is a ValueError; Python's own reader lets several pass."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN = 80


def parse_json(text: str) -> Any:  # noqa: ANN401
    """Parse a JSON text; what the standard leaves open is refused.

    Args:
        text: one JSON value.

    Raises:
        ValueError: for no valid JSON, a name that occurs twice in an object, NaN or infinity, a number that is too
            large for a float or too long to read, text that is no valid Unicode, and nesting that is too deep.

    Examples:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float, parse_int=_int)
        # Half of a surrogate pair, such as "\ud800", is read without complaint and fails when it is written.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"no valid JSON: {error.msg} ({line}column {error.colno})") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (no UTF-8 text: {error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it must hold a JSON object, got {shorten(value)})")
    return value


def shorten(value: object) -> str:
    """Show a value in a message, cut when it is long.

    Examples:
        >>> shorten([1, "a"]), len(shorten("x" * 1000))
        ("[1, 'a']", 80)
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or a number too long to print
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


Check = Callable[[Any], bool]


def is_text(value: object) -> bool:
    """True for a string."""
    return isinstance(value, str)


def is_number(value: object) -> bool:
    """True for an int or a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """True for an int from 0 to 2**53; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def list_of(check: Check) -> Check:
    """A check that a value is a list whose entries pass another check."""
    return lambda value: isinstance(value, list) and all(check(entry) for entry in value)


def check_fields(
    value: object, required: Mapping[str, Check], *, where: str, optional: Mapping[str, Check] | None = None
) -> dict[str, Any]:
    """Return a JSON object after checking its fields; others that it may have are left alone.

    Args:
        value: what was read.
        required: by name, what the field's value must pass.
        where: what to call the object in messages.
        optional: the same for fields that may be missing.

    Raises:
        ValueError: names the first field that is missing or wrong.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with {', '.join(required)}; got {shorten(value)}")
    for name, check in {**required, **(optional or {})}.items():
        if name not in value:
            if name in required:
                raise ValueError(f"{where} lacks {name!r}")
        elif not check(value[name]):
            raise ValueError(f"{where}: {name} must not be {shorten(value[name])}")
    return value


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that is named relative to a folder, after checking that it lies in that folder.

    Symbolic links count by where they lead to.

    Raises:
        ValueError: when the name is absolute, leads out of the folder, or can be no file's name.
    """
    try:
        if Path(name).is_absolute() or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{shorten(name)} lies outside of the folder {folder}")
    except (OSError, RuntimeError) as error:  # too long a name; a circle of symbolic links
        raise ValueError(
            f"{shorten(name)} is no usable file name: {getattr(error, 'strerror', None) or error}"
        ) from None
    return folder / name


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {shorten(name)} occurs twice in one object")
        found[name] = value
    return found


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shorten(text)} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 300:  # longer than the largest float; Python itself stops at 4300 digits
        raise ValueError(f"the number {shorten(text)} is too large")
    return int(text)
