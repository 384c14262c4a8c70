"""Checks of single arguments: each raises an error that names owner, argument, value and what is wanted."""

from itertools import pairwise
from numbers import Integral, Real

LARGEST = 2**53
"""Whole numbers from here on are refused: no count is so large, and floats cannot hold them exactly."""


def brief(value: object, length: int = 80) -> str:
    """The value as text for a message, cut where it is long.

    Examples:
        >>> brief([1, 2]), brief("x" * 200)[-6:]
        ('[1, 2]', 'xxx...')
    """
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out ints of thousands of digits
        text = f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be True or False, got {brief(value)} of type {type(value).__name__}")


def check_int(owner: str, name: str, value: object, *, lowest: int = 0, below: int = LARGEST) -> None:
    """Raise unless `value` is an int from `lowest` to below `below`.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is out of range.
    """
    wanted = f"{owner}: {name} must be an int of at least {lowest}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}")
    if not lowest <= value < below:
        raise ValueError(f"{wanted}{_below(value, below)}, got {brief(value)}")


def check_seed(owner: str, value: object) -> None:
    """Raise unless `value` is an int that NumPy's and torch's generators take: 0 to 2^63 - 1."""
    check_int(owner, "seed", value, below=2**63)


def check_real(owner: str, name: str, value: object, lowest: float, highest: float) -> int | float:
    """Return a number in [lowest, highest] as a plain int or float, or raise; NaN is none.

    Raises:
        TypeError: when it is no real number.
        ValueError: when it is out of range.
    """
    wanted = f"{owner}: {name} must be a number from {lowest} to {highest}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not lowest <= number <= highest:
        raise ValueError(f"{wanted}, got {brief(value)}")
    return number


def check_layers(owner: str, value: object, *, example: tuple[int, ...], parameter: str = "layers") -> tuple[int, ...]:
    """Return decoder layers as a tuple; raise unless they are ints of at least 1 that ascend.

    Args:
        owner: the class or function whose argument this is.
        value: a tuple or list of ints, at least one.
        example: shown in messages.
        parameter: the argument's name.

    Raises:
        TypeError: when it is no tuple or list of ints.
        ValueError: when it is empty, or a layer is below 1, comes twice or after a later one.
    """
    wanted = f"{owner}: {parameter} must be a tuple of ints of at least 1 that ascend, such as {example}"
    if not isinstance(value, tuple | list):
        raise TypeError(f"{wanted}, got {brief(value)} of type {type(value).__name__}")
    for layer in value:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise TypeError(f"{wanted}, got {brief(layer)} of type {type(layer).__name__} in {brief(value)}")
    if not value or value[0] < 1 or value[-1] >= LARGEST or any(later <= earlier for earlier, later in pairwise(value)):
        raise ValueError(f"{wanted}, got {brief(value)}; sort them and name each once")
    return tuple(value)


def _below(value: int, below: int) -> str:
    return f" and below 2**{below.bit_length() - 1}" if value >= below else ""


__all__ = ["LARGEST", "brief", "check_flag", "check_int", "check_layers", "check_real", "check_seed"]
