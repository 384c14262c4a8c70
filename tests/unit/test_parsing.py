"""`parse` reads configurations as data, and says what it cannot read."""

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import (
    GreedyRepMax,
    MIAlignment,
    Pipeline,
    PruningStrategy,
    Selection,
    Tokens,
    parse,
    register,
    registry,
)
from tokenprune.baselines import Random


def test_reads_names_class_names_and_pipelines() -> None:
    expected = MIAlignment(0.8) >> GreedyRepMax(64)
    assert parse("mi_alignment(keep=0.8) >> greedy_repmax(keep=64)") == expected
    assert parse(" (MIAlignment(0.8)>>GreedyRepMax(64)) ") == expected
    assert parse("random(10, seed=3)") == Random(10, seed=3)
    assert repr(expected) == "mi_alignment(keep=0.8) >> greedy_repmax(keep=64)"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("greedy_repmx(keep=3)", ValueError, ["greedy_repmx", "did you mean", "greedy_repmax"]),
        ("zzzz(keep=3)", ValueError, ["zzzz", "known:"]),
        ("greedy_repmax(keep=", ValueError, ["cannot read", "column"]),
        ("", ValueError, ["cannot read"]),
        ("greedy_repmax", ValueError, ["expected a call", "greedy_repmax"]),
        ("3 >> 4", ValueError, ["expected a call", "'3'"]),
        ("random(keep=3, sed=1)", TypeError, ["sed", "random(keep=3, sed=1)"]),
        ("random()", TypeError, ["keep", "random()"]),
        ("random(keep=open)", ValueError, ["'open'", "no literal"]),
        ("random(keep=__import__('os').getpid())", ValueError, ["expected a call"]),
        ("random(**{'keep': 3})", ValueError, ["** is not allowed"]),
        ("random(keep=-3)", ValueError, ["Random: keep", "-3"]),
        ("mi_alignment(keep=3, metric='l7')", ValueError, ["metric", "'l7'"]),
        ("random(keep=0.1) > random(keep=0.1)", ValueError, ["expected a call"]),
        ("random(keep=3, keep=4)", ValueError, ["keep", "twice"]),
        ("random(keep={[]: 1})", ValueError, ["'{[]: 1}'", "no literal"]),
        ("(" * 5000 + "random(keep=3)" + ")" * 5000, ValueError, ["parse", "nested"]),
        ("random(keep=" + "[" * 5000 + "]" * 5000 + ")", ValueError, ["parse", "nested"]),
        ("random(keep=" + "-" * 5000 + "3)", ValueError, ["parse", "nested too deeply", "5014 characters"]),
        (" >> ".join(["random(keep=3)"] * 50_000), ValueError, ["parse", "nested too deeply"]),
        ("random(keep=" + "9" * 5000 + ")", ValueError, ["parse", "digits"]),
        ("random(keep=" + "9" * 4000 + ")", ValueError, ["Random: keep", "below 2**53"]),
        ("random(keep=nan)", ValueError, ["'nan'", "no literal"]),
        ("random(keep=1e999)", ValueError, ["Random: keep", "inf"]),
        ("random(keep=3)\0", ValueError, ["parse", "null bytes"]),
        ("random(keep='\ud800')", ValueError, ["parse", "surrogates", "column 14"]),
    ],
)
def test_says_what_is_wrong(text: str, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_chain_of_many_stages_is_read_flat() -> None:
    strategy = parse(" >> ".join(["random(keep=3)"] * 1500))
    assert isinstance(strategy, Pipeline)
    assert len(strategy.stages) == 1500
    assert parse("random(9) >> (random(8) >> random(7)) >> random(6)") == parse(
        "random(9) >> random(8) >> random(7) >> random(6)"
    )


PIECES = [
    "random",
    "(",
    ")",
    "keep",
    "=",
    ",",
    ">>",
    "3",
    "0.5",
    "[",
    "]",
    "'",
    "{",
    "}",
    ":",
    "-",
    "\0",
    "\ud800",
    " ",
]
PIECES += [
    "*",
    "1j",
    "nan",
    "None",
    "lambda",
    "\n",
    "#",
    "\\",
    "per_tile",
    "random(keep=3)",
    "f'",
    "b'\xff'",
    "1_0",
    "0x",
    "éa",
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=20)))
def test_any_text_is_a_strategy_or_an_error_that_says_parse(text: str) -> None:
    try:
        strategy = parse(text)
    except (ValueError, TypeError) as error:
        assert re.search("parse|strategy|Random|PerTile", str(error))  # noqa: PT017
        return
    assert parse(repr(strategy)) == strategy


def test_refuses_what_is_no_text() -> None:
    with pytest.raises(TypeError, match="text must be a str, got 3"):
        parse(3)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class Last(PruningStrategy):
    """Keeps the last tokens."""

    name: ClassVar[str] = "last_tokens"
    keep: int | float

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(tokens.n - self.count(tokens), tokens.n), total=tokens.n)


def test_register_makes_a_class_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(ValueError, match="last_tokens"):
        parse("last_tokens(keep=3)")
    assert register(Last) is Last
    assert parse("last_tokens(keep=3)") == Last(3)
    assert parse("random(keep=5) >> last_tokens(keep=3)").select(Tokens(torch.zeros(9, 1))).kept == 3


def test_a_name_belongs_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})

    class Impostor(Last):
        name = "random"

    with pytest.raises(ValueError, match=r"'random' belongs to tokenprune\.baselines\.random_subset\.Random"):
        register(Impostor)
    with pytest.raises(TypeError, match="no concrete PruningStrategy"):
        register(PruningStrategy)
    with pytest.raises(TypeError, match="no concrete PruningStrategy"):
        register(int)  # type: ignore[type-var]
