"""Is an answer right? Exact match after a documented normalisation, which never takes the answer itself away."""

import re
import unicodedata
from collections.abc import Sequence

METRIC = "exact match"
"""The metric's exact name, as reports print it."""
METRIC_VERSION = 2
"""Which rules `normalise` follows; every row names it. Raised whenever some answer may be judged otherwise.

1 took every punctuation character from the ends of words, so that "C#" was "C" and "?" was nothing. 2 keeps those that
carry meaning.
"""

_MEANING = frozenset("#%&*@/\\_-\u2030\u2031\u066a\u2032\u2033\u2034")  # the last three: minutes, seconds
_QUOTES = frozenset("'\"\u2018\u2019\u201c\u201d\u00ab\u00bb\u201e\u201a")
_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212"), "-") | {ord("\u2044"): "/"}
_POWER = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_MIXED_FRACTION = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215f])")
_EMPHASIS = re.compile(r"(?<![\w*`])(\*{1,3}|`)(?=\S)([^*`]*\w[^*`]*)(?<=\S)\1(?![\w*`])")


def normalise(text: str) -> str:
    r"""Give the form in which answers are compared.

    In this order:

    - Unicode NFKC and lower case. Powers keep their meaning: "10²" becomes "10^2", "2½" becomes "2 1/2". All
      hyphens and the minus sign become "-".
    - Marks of emphasis around words go: `**yes**`.
    - Words lose punctuation at both ends: full stops, commas, question marks, brackets, quotes, dashes. What carries
      meaning stays: # % & * @ / \ _ -, a point before a digit or a letter (".5"), feet and inches after a digit. What
      is inside a word stays: "3.5", "it's". So do symbols: "C++", "$5", "<3".
    - Words of punctuation alone go, and so does a list mark "-" before the first word.
    - White space is collapsed.

    When that leaves nothing, as of "?" or "...", the answer is those marks, and they stay.

    The official evaluation of VQA goes further: it also drops articles, writes number words as digits and repairs
    contractions, and it takes "-", "/" and "+" out of words. That makes "A", "-" and "C++" unlike what they are, so it
    is not done here: score `samples.jsonl` with your benchmark's own program to compare with its table.

    Args:
        text: an answer.

    Examples:
        >>> normalise("  The CAT. "), normalise("-3.5!"), normalise("'yes' , sir")
        ('the cat', '-3.5', 'yes sir')
        >>> normalise("C#."), normalise("(50%)"), normalise(" ... ")
        ('c#', '50%', '...')
    """
    words = _characters(text).split()
    quoted = any(word[0] in _QUOTES for word in words)
    kept = [word for word in (_strip(word, quoted=quoted) for word in words) if word]
    while len(kept) > 1 and kept[0] == "-":
        del kept[0]
    return " ".join(kept or words)


def _characters(text: str) -> str:
    """Lower case, one form for what means the same, no emphasis."""
    text = _POWER.sub(lambda found: f"^{found[0]}", text)
    text = _MIXED_FRACTION.sub(" ", text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).translate(_HYPHENS)
    while (plain := _EMPHASIS.sub(r"\2", text)) != text:
        text = plain
    return text


def _strip(word: str, *, quoted: bool) -> str:
    """The word without punctuation at its ends.

    Args:
        word: not empty.
        quoted: whether some word begins with a quote; else a quote after a digit means feet, inches or minutes.
    """
    start, end = 0, len(word)
    while end and _is_mark(word[end - 1]):
        if word[end - 1] in _QUOTES and not quoted and word[: end - 1][-1:].isdigit():
            break
        end -= 1
    while start < end and _is_mark(word[start]):
        decimal = word[start] == "." and word[start + 1].isalnum() if start + 1 < end else False
        if decimal and word[:start][-1:] != ".":
            break
        start += 1
    return word[start:end]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _MEANING


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Say whether the normalised answer equals one of the normalised references.

    Examples:
        >>> exact_match("Seven.", ["seven"]), exact_match("a seven", ["seven"]), exact_match("", ["?"])
        (True, False, False)
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
