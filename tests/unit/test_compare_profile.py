"""The profile of a comparison: no time is counted twice, and what it stands in front of is there."""

from importlib import import_module
from typing import Any

import pytest

from benchmarks.compare_profile import PARTS, Clock


def test_an_inner_part_stops_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: time[0])
    clock = Clock()

    def spend(seconds: float) -> None:
        time[0] += seconds

    inner = clock.around("inner", lambda: spend(2.0))

    def work() -> None:
        spend(1.0)
        inner()
        inner()
        spend(4.0)

    spend(8.0)  # nobody's
    clock.around("outer", work)()
    assert dict(clock.seconds) == {"outer": 5.0, "inner": 4.0}


def test_a_part_that_fails_is_closed() -> None:
    clock = Clock()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        clock.around("part", fail)()
    assert clock._open == []


@pytest.mark.parametrize(("module", "name"), [(module, name) for _, module, name in PARTS])
def test_every_part_exists(module: str, name: str) -> None:
    owner: Any = import_module(module)
    for step in name.split("."):
        owner = getattr(owner, step)
    assert callable(owner)
