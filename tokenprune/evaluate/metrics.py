"""Is an answer right? Exact match after a documented normalisation."""

import unicodedata
from collections.abc import Sequence

METRIC = "exact match"
"""The metric's exact name, as reports print it."""


def normalise(text: str) -> str:
    """The form in which answers are compared.

    Unicode NFKC, lower case, punctuation stripped from both ends of every word, white space collapsed. A minus sign
    before a digit stays, and so does what stands inside a word: "3.5", "it's".

    Args:
        text: an answer.

    Examples:
        >>> normalise("  The CAT. "), normalise("-3.5!"), normalise("'yes' , sir")
        ('the cat', '-3.5', 'yes sir')
    """
    words = (_strip(word) for word in unicodedata.normalize("NFKC", text).lower().split())
    return " ".join(word for word in words if word)


def _strip(word: str) -> str:
    start, end = 0, len(word)
    while end and unicodedata.category(word[end - 1]).startswith("P"):
        end -= 1
    while start < end and unicodedata.category(word[start]).startswith("P"):
        if word[start] == "-" and word[start + 1 : start + 2].isdigit():
            break
        start += 1
    return word[start:end]


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """True when the normalised answer equals one of the normalised references.

    Examples:
        >>> exact_match("Seven.", ["seven"]), exact_match("a seven", ["seven"])
        (True, False)
    """
    return normalise(answer) in {normalise(reference) for reference in references}


def accuracy_by_kind(correct: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Mean of `correct` within each kind, in the order in which kinds first occur.

    Args:
        correct: 0 or 1 per sample, or a mean over seeds.
        kinds: the kind of each sample.

    Raises:
        ValueError: when the two differ in length.

    Examples:
        >>> accuracy_by_kind([1, 0, 1], ["count", "count", "colour"])
        {'count': 0.5, 'colour': 1.0}
    """
    if len(correct) != len(kinds):
        raise ValueError(f"accuracy_by_kind: got {len(correct)} values of correct but {len(kinds)} kinds")
    groups: dict[str, list[float]] = {}
    for value, kind in zip(correct, kinds, strict=True):
        groups.setdefault(kind, []).append(float(value))
    return {kind: sum(values) / len(values) for kind, values in groups.items()}
