"""The exact statements of section "How good is greedy?" on random small clouds with ties, copies and zero rows."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings

from tests.properties.repmax import statements
from tests.properties.repmax.clouds import Cloud, clouds

few = settings(max_examples=100, deadline=None, derandomize=True, database=None)

STATEMENTS = [
    statements.value_is_the_pair_sum,
    statements.greedy_keeps_its_share,
    statements.swaps_end_in_a_local_optimum,
    statements.swap_gains_are_differences,
    statements.heuristics_stay_below_and_bounds_above,
    statements.every_iterate_bounds_the_optimum,
    statements.progress_encloses_the_optimum,
    statements.exact_equals_enumeration,
    statements.exclusion_bounds_hold,
    statements.certificates_verify_and_tampering_shows,
    statements.lies_do_not_verify,
]


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda function: function.__name__)
def test_statement_holds(statement: Callable[[Cloud], None]) -> None:
    @few
    @given(clouds(largest=7))
    def run(cloud: Cloud) -> None:
        statement(cloud)

    run()


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(clouds(smallest=2, largest=6))
def test_ilp_agrees(cloud: Cloud) -> None:
    statements.ilp_equals_enumeration(cloud)
