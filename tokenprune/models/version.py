"""The range of transformers releases for which the model code holds."""

import re

import transformers

OLDEST = (5, 17)
NEWEST = (6, 0)
"""First release series known not to be supported: its signatures are unknown."""


def check_version(version: str = transformers.__version__) -> None:
    """Raise unless `version` of transformers is one that this package prunes correctly.

    Older releases do not fail: up to 5.0 `generate` repeats the last prompt position for every new token when positions
    are given, and answers are wrong without any sign of it. So there is no way to go on with a warning.

    Args:
        version: the text of `transformers.__version__`.

    Raises:
        ImportError: when the release is not in the supported range.

    Examples:
        >>> check_version("5.17.0")
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not OLDEST <= tuple(map(int, numbers.groups())) < NEWEST:
        raise ImportError(
            f"tokenprune.models: needs transformers >= {OLDEST[0]}.{OLDEST[1]} and < {NEWEST[0]}, found {version}; "
            f'pip install "transformers>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}"'
        )
