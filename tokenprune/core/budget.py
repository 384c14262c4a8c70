"""Budget arithmetic: the one place where a number of tokens is rounded, read and printed."""

import math
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, TypeAlias

from tokenprune.arguments import LARGEST, brief


def check_keep(keep: object, *, owner: str, parameter: str = "keep") -> int | float:
    """Return `keep` as a plain int or float, or raise an error that names owner, parameter and value.

    Args:
        keep: a positive int (number of tokens) or a float in (0, 1] (share of the image's original tokens).
        owner: the class or function whose argument this is; it starts the error message.
        parameter: the argument's name.

    Returns:
        The same value as a built-in int or float (NumPy scalars are converted).

    Raises:
        TypeError: for a bool or anything that is no real number.
        ValueError: for 0, a negative number, NaN, or a float above 1.

    Examples:
        >>> check_keep(64, owner="Demo")
        64
        >>> check_keep(1.5, owner="Demo")
        Traceback (most recent call last):
        ValueError: Demo: keep must be a positive int (tokens) or a float in (0, 1] (share), got 1.5; ...
    """
    wanted = f"{owner}: {parameter} must be a positive int (tokens) or a float in (0, 1] (share)"
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"{wanted}, got {brief(keep)} of type {type(keep).__name__}")
    if isinstance(keep, Integral):
        if keep <= 0:
            raise ValueError(f"{wanted}, got {brief(int(keep))}; at least one token is always kept")
        if int(keep) >= LARGEST:
            raise ValueError(f"{wanted} below 2**53, got {brief(int(keep))}; write 1.0 to keep every token")
        return int(keep)
    share = float(keep)
    if not 0.0 < share <= 1.0:  # also catches NaN
        way_out = (
            f"; for a number of tokens write an int, keep={int(share)}" if math.isfinite(share) and share > 1 else ""
        )
        raise ValueError(f"{wanted}, got {share}{way_out}")
    return share


Keep: TypeAlias = Annotated[int | float, check_keep]
"""How much to keep: an int is a number of tokens, a float in (0, 1] a share of the image's original tokens."""


@lru_cache(maxsize=1024, typed=True)  # typed: 1 is one token, 1.0 all of them
def keep_count(keep: Keep, total: int) -> int:
    """Count the tokens that `keep` asks for out of `total` original ones; never below 1, and not cut at `total`.

    A share is rounded half up, as the decimal that the caller wrote: 0.145 of 100 is 14.5 and becomes 15, although
    the binary product is 14.499999999999998.

    Args:
        keep: a value that passed `check_keep`.
        total: number of the image's original tokens, at least 1.

    Returns:
        The requested count. It may exceed `total` when `keep` is an int; whoever selects then keeps everything and
        says so.

    Examples:
        >>> keep_count(0.8, 576), keep_count(0.111, 576), keep_count(0.001, 576), keep_count(700, 576)
        (461, 64, 1, 700)
    """
    return keep if isinstance(keep, int) else max(1, share_count(keep, total))


def share_count(share: float, total: int) -> int:
    """Count a share of `total`, rounded half up as the decimal that the caller wrote; may be 0.

    Examples:
        >>> share_count(0.145, 100), share_count(0.001, 100)
        (15, 0)
    """
    return int((Decimal(repr(share)) * total).to_integral_value(rounding=ROUND_HALF_UP))


def parse_budget(text: str) -> Keep:
    """Read a budget from the command line: "64" tokens, "0.111" or "11.1%" of the image's tokens.

    Raises:
        ValueError: when it is none of the three, or out of range.

    Examples:
        >>> parse_budget("64"), parse_budget("0.111"), parse_budget("11.1%")
        (64, 0.111, 0.111)
    """
    stripped = text.strip()
    try:
        if stripped.endswith("%"):
            return check_keep(round(float(stripped[:-1]) / 100, 12), owner="budget")
        return check_keep(int(stripped) if stripped.lstrip("+-").isdigit() else float(stripped), owner="budget")
    except ValueError as error:
        reason = f" ({error})" if "keep must" in str(error) else ""
        raise ValueError(f"--keep must be like 64 (tokens), 0.111 or 11.1% (share), got {text!r}{reason}") from None


def show_budget(keep: Keep) -> str:
    """Print a budget as tables do.

    Examples:
        >>> show_budget(64), show_budget(0.111), show_budget(0.5)
        ('64', '11.1%', '50%')
    """
    return str(keep) if isinstance(keep, int) else f"{keep * 100:.4g}%"
