import csv
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune.evaluate.comparison import compare
from tokenprune.evaluate.metrics import METRIC, METRIC_VERSION, accuracy_by_kind, exact_match, normalise


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Seven", "seven"),
        (" seven.\n", "seven"),
        ("It's 3.5%!", "it's 3.5%"),
        ("-5", "-5"),
        ("- 5", "5"),
        ("- - yes", "yes"),
        ("well-known", "well-known"),
        ("(a) ¿qué?", "a qué"),
        ("\uff26\uff35\uff2c\uff2c", "full"),
        ("...", "..."),
        ("\u2026", "..."),
        ("? !", "? !"),
        ("", ""),
        (" \t\n", ""),
        ("...yes", "yes"),
        (".5", ".5"),
        ("(-.5)", "-.5"),
        ("'route 66'", "route 66"),
        ("6'", "6'"),
        ('the "cat" said 6"', "the cat said 6"),
        ("**Yes**, the *red* `one`.", "yes the red one"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("10\u00b2", "10^2"),
        ("10\u207b\u00b3 m", "10^-3 m"),
        ("2\u00bd", "2 1/2"),
        ("H\u2082O", "h2o"),
        ("\u22125", "-5"),
        ("yes \u2014 sir", "yes sir"),
    ],
)
def test_normalise(text: str, form: str) -> None:
    assert normalise(text) == form
    assert normalise(form) == form


MARKS = [chr(code) for code in range(0x21, 0x3000) if unicodedata.category(chr(code))[0] in "PS"]


def test_no_mark_is_nothing_and_an_empty_answer_is_right_for_none() -> None:
    for mark in [*MARKS, "...", "?!", "--", "()", '""', "**", "%%", "\u00bf?"]:
        assert normalise(mark), mark
        assert not exact_match("", [mark]), mark
        assert not exact_match(mark, [""]), mark
        assert exact_match(mark, [mark]), mark


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        ("C", "C#"),
        ("C", "C++"),
        ("F", "F#"),
        ("A", "A-"),
        ("O-", "O+"),
        ("5", "-5"),
        ("5", "\u22125"),
        ("5", "\u20135"),
        ("5", ".5"),
        ("5", "-.5"),
        ("5", "5%"),
        ("5", "5\u2030"),
        ("1", "#1"),
        ("x", "-x"),
        ("x", "*x"),
        ("home", "@home"),
        ("home", "/home"),
        ("5'", '5"'),
        ("5", "5'"),
        ("net", ".net"),
        ("102", "10\u00b2"),
        ("21/2", "2\u00bd"),
        ("init", "__init__"),
        ("?", "??"),
        ("?", "!"),
        ("5 - 3", "5 3"),
        ("$5", "5"),
        ("<3", "3"),
    ],
)
def test_answers_that_mean_different_things_are_different(answer: str, other: str) -> None:
    assert not exact_match(answer, [other])
    assert not exact_match(other, [answer])
    assert exact_match(other, [answer, f" {other.upper()} "])


@given(st.text(max_size=12) | st.text("'\"-.?#*` a5\u2026\u00b2\u00bd\u2014(", max_size=12))
def test_the_form_is_its_own_form_and_is_empty_for_white_space_alone(text: str) -> None:
    form = normalise(text)
    assert normalise(form) == form
    assert bool(form) == bool(unicodedata.normalize("NFKC", text).split())


@given(st.text("abcdefghij0123456789", min_size=1), st.sampled_from([".", ",", "!", "?", ";", ":", ")", "\u2026"]))
def test_sentence_marks_around_a_word_do_not_matter(word: str, mark: str) -> None:
    assert exact_match(f"({word.upper()}{mark}", [word])


def test_any_reference_counts_and_parts_do_not() -> None:
    assert exact_match("Yes!", ["yeah", "yes"])
    assert not exact_match("yes it is", ["yes"])


def test_kinds_keep_their_order_and_lengths_must_fit() -> None:
    assert list(accuracy_by_kind([1, 0.5], ["b", "a"])) == ["b", "a"]
    with pytest.raises(ValueError, match="2 values of correct but 1 kinds"):
        accuracy_by_kind([1, 0], ["a"])


def test_every_row_of_a_run_names_metric_and_version(tmp_path: Path) -> None:
    done = compare(
        tiny_loaded(), tiny_samples(2), tiny_settings(budgets=(2,)), data="tiny", out=tmp_path, figures=False
    )
    with (done.folder / "results.csv").open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    rows += [json.loads(line) for line in (done.folder / "samples.jsonl").read_text().splitlines()]
    assert {(row["metric"], str(row["metric_version"])) for row in rows} == {(METRIC, str(METRIC_VERSION))}
    assert f"{METRIC} v{METRIC_VERSION}" in done.footer
    assert f"{METRIC}, version {METRIC_VERSION}" in str(done.facts["metric"])
