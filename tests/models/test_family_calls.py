"""Ways of calling, for every family; and docs/compatibility.md says what these checks say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility import RESULTS, measure
from tests.models.family_calls import CALLS, outcome
from tests.models.family_oracle import FAMILIES
from tokenprune.testing import tiny_families

# The rest is compared with references in test_families.py, or run by `make test-matrix`.
SUBSET = {
    "cache = no cache",
    "beams",
    "a new image in the second turn",
    "return sequences, sampled",
    "streamer",
    "loss with labels",
    "bfloat16",
}
ON_FLASH = {"tokens dropped before the language model", "tokens dropped inside the language model"}
CASES = [
    pytest.param(name, backend, marks=() if name in always else pytest.mark.matrix)
    for name, (_, backends) in CALLS.items()
    for backend, always in zip(("sdpa", "eager", "flash"), (SUBSET, (), ON_FLASH), strict=True)
    if backend in backends
]


def runs() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())["runs"]
    return found


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_way_of_calling(family: str, name: str, backend: str) -> None:
    status, detail = outcome(name, family, backend)
    assert status != "failed", detail
    told = runs()
    newest = told[list(told)[-1]]["families"][family]["results"][name][backend]
    assert newest[0] == status, "run: python -m tests.compatibility"


def test_the_table_has_both_ends_of_the_range_every_family_and_no_failure() -> None:
    told = runs()
    pins = (Path(RESULTS).parents[2] / "constraints.txt").read_text()
    newest = re.search(r"^transformers==(\S+)$", pins, re.MULTILINE)
    assert newest is not None
    assert [version.rsplit(".", 1)[0] for version in told] == ["5.17", newest[1].rsplit(".", 1)[0]]
    for version, run in told.items():
        assert set(run["families"]) == set(tiny_families()), f"{version}: run python -m tests.compatibility"
        for family, entry in run["families"].items():
            assert set(entry["results"]) == set(CALLS)
            for name, cells in entry["results"].items():
                for backend, (status, detail) in cells.items():
                    assert status != "failed", f"{version} {family} {name} {backend}: {detail}"


def test_a_check_that_fails_is_written_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(family: str, backend: str) -> None:
        raise AssertionError("off by 3")

    monkeypatch.setattr("tests.models.family_calls.CALLS", {"only": (broken, ("sdpa",))})
    entry = measure(["llava"])["families"]["llava"]
    assert entry["results"] == {"only": {"sdpa": ("failed", "AssertionError: off by 3")}}
    assert "failed AssertionError: off by 3" in capsys.readouterr().out
