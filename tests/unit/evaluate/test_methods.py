import pytest

from tokenprune.baselines import Random
from tokenprune.core.text import parse
from tokenprune.evaluate.cells import make_cells
from tokenprune.evaluate.methods import Method, parse_budget, show_budget
from tokenprune.evaluate.settings import Settings


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("greedy_repmax", "greedy_repmax(keep=7)"),
        ("greedy_repmax()", "greedy_repmax(keep=7)"),
        ("GreedyRepMax(distance='euclidean')", "greedy_repmax(keep=7, distance='euclidean')"),
        ("trim_tokenator(align=0.7)", "trim_tokenator(keep=7, align=0.7)"),
        ("mi_alignment(0.8) >> greedy_repmax", "mi_alignment(keep=0.8) >> greedy_repmax(keep=7)"),
        ("random(seed=4)", "random(keep=7, seed=4)"),
        ("random", "random(keep=7, seed=2)"),
        ("random(keep=0.9) >> (mi_alignment(keep=0.8) >> random)", None),
    ],
)
def test_budget_and_seed_are_filled_in(text: str, filled: str | None) -> None:
    expected = filled or "random(keep=0.9, seed=2) >> mi_alignment(keep=0.8) >> random(keep=7, seed=2)"
    assert Method(text).strategy(keep=7, seed=2) == parse(expected)


@pytest.mark.parametrize(
    ("text", "seeded"),
    [
        ("random", True),
        ("random(seed=1)", False),
        ("greedy_repmax", False),
        ("greedy_repmax(start='pair')", False),
        ("greedy_repmax(start='random')", True),
        ("random(keep=0.5) >> greedy_repmax", True),
    ],
)
def test_only_open_seeds_count(text: str, seeded: bool) -> None:
    assert Method(text).seeded is seeded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("greedy_repmax(keep=64)", "leave it out here"),
        ("greedy_repmax(64)", "leave it out here"),
        ("greedy_repmax(", "cannot read 'greedy_repmax"),
        ("greedy_repma", "did you mean greedy_repmax"),
        ("1 + 1", "expected a call like greedy_repmax"),
        ("random >> ", "cannot read 'random >> '"),
        ("greedy_repmax(distance='x')", "distance must be one of"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method(text)


def test_unknown_and_missing_arguments() -> None:
    with pytest.raises(TypeError, match="colour"):
        Method("greedy_repmax(colour=1)")
    with pytest.raises(TypeError, match="keep"):
        Method("mi_alignment >> greedy_repmax")


def test_labels_are_normalised_so_that_one_method_stands_once() -> None:
    assert Method("random()") == Method("random")
    assert [m.label for m in Settings(methods=(Method("random"), Method("greedy_repmax"))).all_methods] == [
        "random",
        "uniform_grid",
        "grid_pool",
        "greedy_repmax",
    ]


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "0%", "101%", "x", "", "nan", "%"])
def test_bad_budgets_name_the_option(text: str) -> None:
    with pytest.raises(ValueError, match=f"--keep must be like 64 .* got {text!r}"):
        parse_budget(text)


def test_one_token_is_not_everything() -> None:
    assert isinstance(parse_budget("1"), int)
    assert isinstance(parse_budget("1.0"), float)
    cells = make_cells([Method("random")], [1, 1.0], [0])
    assert [cell.id for cell in cells] == ["000-dense", "001-random-1-s0", "002-random-100pct-s0"]
    assert show_budget(0.056) == "5.6%"


def test_cells_cross_methods_budgets_and_seeds() -> None:
    cells = make_cells([Method("random"), Method("grid_pool")], [0.5, 64], [0, 3])
    assert [(c.method, c.keep, c.seed) for c in cells] == [
        ("dense", None, None),
        ("random", 0.5, 0),
        ("random", 0.5, 3),
        ("grid_pool", 0.5, None),
        ("random", 64, 0),
        ("random", 64, 3),
        ("grid_pool", 64, None),
    ]
    assert cells[5].strategy == Random(64, seed=3)
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("budgets", "seeds", "message"),
    [
        ((), (0,), "budgets is empty"),
        ((0.5,), (), "seeds is empty"),
        ((0.5, 0.5), (0,), "budgets holds 0.5 twice"),
        ((0.5,), (-1,), "seeds must be 0 or more, got -1"),
        ((0,), (0,), "budgets must be a positive int"),
    ],
)
def test_bad_cells(budgets: tuple[float, ...], seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cells([Method("random")], budgets, seeds)


def test_settings_check_their_numbers() -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        Settings(batch_size=0)
    with pytest.raises(ValueError, match="positions must be one of 'original', 'compact', got 'x'"):
        Settings(positions="x")  # type: ignore[arg-type]


def test_a_method_without_a_budget_runs_once_behind_all_budgets() -> None:
    method = Method("random(keep=0.5) >> VTW(layer=1)")
    assert (method.fixed, method.seeded, Method("fastv(layer=1)").fixed) == (True, True, False)
    assert method.strategy(seed=3) == parse("random(keep=0.5, seed=3) >> vtw(layer=1)")
    cells = make_cells([method, Method("vtw(layer=1)"), Method("grid_pool")], [0.5, 64], [0, 3])
    assert [(c.method.split()[0], c.keep, c.seed) for c in cells[1:]] == [
        ("grid_pool", 0.5, None),
        ("grid_pool", 64, None),
        ("random(keep=0.5)", None, 0),
        ("random(keep=0.5)", None, 3),
        ("vtw(layer=1)", None, None),
    ]
    assert cells[-1].id == "005-vtw-layer-1-fixed"


def test_budgets_go_with_methods_that_have_one() -> None:
    with pytest.raises(ValueError, match="no `keep`, so no budget can be put in"):
        Method("vtw(layer=1)").strategy(keep=4)
    with pytest.raises(ValueError, match="give a budget for it"):
        Method("random").strategy()
    with pytest.raises(TypeError, match="drops"):
        Method("fitprune")
