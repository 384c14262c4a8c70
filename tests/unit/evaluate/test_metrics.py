import pytest

from tokenprune.evaluate.metrics import accuracy_by_kind, exact_match, normalise


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Seven", "seven"),
        (" seven.\n", "seven"),
        ("It's 3.5%!", "it's 3.5"),
        ("-5", "-5"),
        ("- 5", "5"),
        ("well-known", "well-known"),
        ("(a) ¿qué?", "a qué"),
        ("\uff26\uff35\uff2c\uff2c", "full"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, form: str) -> None:
    assert normalise(text) == form
    assert normalise(form) == form


def test_any_reference_counts_and_parts_do_not() -> None:
    assert exact_match("Yes!", ["yeah", "yes"])
    assert not exact_match("yes it is", ["yes"])


def test_kinds_keep_their_order_and_lengths_must_fit() -> None:
    assert list(accuracy_by_kind([1, 0.5], ["b", "a"])) == ["b", "a"]
    with pytest.raises(ValueError, match="2 values of correct but 1 kinds"):
        accuracy_by_kind([1, 0], ["a"])
