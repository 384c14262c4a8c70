"""`parse` reads configurations as data, and says what it cannot read."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import Choice, GreedyRepMax, Keep, MIAlignment, Pipeline, Stage, Tokens, parse, strategy
from tokenprune.baselines import VTW, PyramidDrop, Random
from tokenprune.core import registry
from tokenprune.core.text import open_arguments
from tokenprune.core.wrappers import PerTile


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
        ("per_tile(greedy_repmax)", ValueError, ["greedy_repmax", "no literal"]),
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


def make_last(name: str, register: bool = True) -> type[Stage]:
    @strategy(name, register=register)
    class Last(Stage):
        """Keeps the last tokens."""

        keep: Keep

        def choose(self, tokens: Tokens) -> Choice:
            return Choice(torch.arange(tokens.n - self.count(tokens), tokens.n))

    return Last


def test_a_decorated_class_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(ValueError, match="last_tokens"):
        parse("last_tokens(keep=3)")
    make_last("last_tokens", register=False)
    with pytest.raises(ValueError, match="last_tokens"):
        parse("last_tokens(keep=3)")
    cls = make_last("last_tokens")
    assert type(parse("last_tokens(keep=3)")) is cls
    assert type(parse("Last(keep=3)")) is cls
    assert parse("random(keep=5) >> last_tokens(keep=3)").select(Tokens(torch.zeros(9, 1))).kept == 3


def test_a_class_that_is_defined_again_takes_the_place_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    first, second = make_last("last_tokens"), make_last("last_tokens")
    assert first is not second
    assert type(parse("last_tokens(keep=3)")) is second


def test_a_name_belongs_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(ValueError, match=r"'random' belongs to tokenprune\.baselines\.random_subset\.Random"):
        make_last("random")
    for name in ("Last", "last tokens", "a-b"):
        with pytest.raises(ValueError, match="must be snake_case"):
            make_last(name)


def test_names_of_built_in_classes_are_guarded_before_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    impostor = make_last("impostor", register=False)
    monkeypatch.setattr(registry, "_registered", {"fastv": impostor})
    with pytest.raises(ValueError, match=r"'fastv' belongs to tokenprune\.baselines\.fastv\.FastV; rename"):
        parse("fastv(keep=3)")


@pytest.mark.parametrize(
    ("text", "keep", "seed", "expected"),
    [
        ("random", 9, None, "random(keep=9)"),
        ("random", 9, 3, "random(keep=9, seed=3)"),
        ("random(seed=1)", 9, 3, "random(keep=9, seed=1)"),
        ("mi_alignment(keep=0.8) >> random", 0.111, 3, "mi_alignment(keep=0.8) >> random(keep=0.111, seed=3)"),
        ("random(keep=0.9) >> greedy_repmax", 4, 7, "random(keep=0.9, seed=7) >> greedy_repmax(keep=4)"),
        ("greedy_repmax(start='random')", 4, 7, "greedy_repmax(keep=4, start='random', seed=7)"),
        ("trim_tokenator(align=0.7)", 64, None, "trim_tokenator(keep=64, align=0.7)"),
        ("pyramiddrop", 0.125, 0, "pyramiddrop()"),
        ("per_tile(random)", 5, 2, "per_tile(strategy=random(keep=5, seed=2))"),
        ("per_tile(strategy=random())", 5, None, "per_tile(strategy=random(keep=5))"),
        ("prompt_budget(greedy_repmax(keep=1))", 5, None, "prompt_budget(strategy=greedy_repmax(keep=1), keep=5)"),
        ("vtw(layer=2)", None, 4, "vtw(layer=2)"),
    ],
)
def test_budget_and_seed_are_filled_in_where_they_are_open(
    text: str, keep: float | None, seed: int | None, expected: str
) -> None:
    assert repr(parse(text, keep=keep, seed=seed)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random(keep=3)", "filled in per budget"),
        ("random(3)", "filled in per budget"),
        ("vtw(layer=2)", "no `keep`"),
        ("random >> vtw", "no `keep`"),
        ("per_tile(random(keep=3))", "filled in per budget"),
    ],
)
def test_a_budget_that_cannot_be_filled_in_is_refused(text: str, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        parse(text.replace("random >>", "random(keep=9) >>"), keep=5)
    with pytest.raises(ValueError, match="parse: keep must be"):
        parse("random", keep=-1)


def test_what_a_text_leaves_open() -> None:
    assert open_arguments("random") == (True, True, True)
    assert open_arguments("random(4, seed=2)") == (True, False, False)
    assert open_arguments("random(keep=0.5) >> greedy_repmax") == (True, True, True)
    assert open_arguments("greedy_repmax") == (True, True, False)
    assert open_arguments("per_tile(random())") == (True, True, True)
    assert open_arguments("fitprune((1, 2))") == (False, False, False)


def test_budgets_and_seeds_are_replaced() -> None:
    assert Random(3, seed=1).with_keep(0.5).with_seed(4) == Random(0.5, seed=4)
    assert (MIAlignment(0.8) >> Random(3)).with_keep(9).with_seed(2) == MIAlignment(0.8) >> Random(9, seed=2)
    assert PerTile(Random(3)).with_keep(5).with_seed(6) == PerTile(Random(5, seed=6))
    assert PyramidDrop(0.5, layers=(2, 4)).with_keep(7) == PyramidDrop(7, layers=(2, 4))
    with pytest.raises(ValueError, match=r"vtw\(\) has no budget"):
        VTW().with_keep(3)
    with pytest.raises(ValueError, match="no seed"):
        MIAlignment(3).with_seed(1)


def test_a_count_is_no_share() -> None:
    assert Random(1) != Random(1.0)
    assert len({Random(1), Random(1.0), Random(1)}) == 2
    assert PerTile(Random(1)) != PerTile(Random(1.0))
    assert parse("random(keep=1.0)") == Random(1.0)
