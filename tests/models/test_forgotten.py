"""What people write when they mean something else: `prune` without `with`, inputs without two stars."""

import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BatchEncoding, BatchFeature

from tests.models.oracle import ByContent, tiny
from tokenprune import prune, prune_inputs
from tokenprune.models import NotEnteredWarning

WHAT_TO_WRITE = r"never entered, so nothing was pruned; write `with tokenprune\.prune\(model, strategy\) as record:`"


def as_a_statement(model: Any) -> None:
    prune(model, ByContent())


def in_a_variable(model: Any) -> None:
    context = prune(model, ByContent())
    assert context is not None


def in_a_cycle(model: Any) -> None:
    holder: list[Any] = [prune(model, ByContent())]
    holder.append(holder)
    del holder
    gc.collect()


@pytest.mark.parametrize("way", [as_a_statement, in_a_variable, in_a_cycle])
def test_a_context_that_nobody_enters_warns(way: Callable[[Any], None]) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <3> then"])
    dense = model(**inputs).logits
    with pytest.warns(NotEnteredWarning, match=WHAT_TO_WRITE) as caught:
        way(model)
    assert len(caught) == 1
    assert torch.equal(model(**inputs).logits, dense)


def test_the_warning_names_the_line() -> None:
    model, _ = tiny()
    with pytest.warns(NotEnteredWarning) as caught:
        prune(model, ByContent())
    assert caught[0].filename == __file__


def test_it_is_shown_by_default_and_at_the_end_of_a_program() -> None:
    code = "; ".join(
        [
            "import tokenprune",
            "from tokenprune.testing import tiny_llava",
            "model, _ = tiny_llava()",
            "tokenprune.prune(model, 'random(keep=3)')",
            "print('then')",
            "context = tokenprune.prune(model, 'random(keep=3)')",
        ]
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "then\n"
    assert done.stderr.count("NotEnteredWarning: prune: this context was never entered") == 2


def test_contexts_that_are_entered_never_warn() -> None:
    model, make_inputs = tiny()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with prune(model, ByContent()):
            model(**make_inputs(["what is in <3> then"]))
            with pytest.raises(RuntimeError, match="being pruned already"):  # an error of its own
                prune(model, ByContent()).__enter__()
        with pytest.raises(ZeroDivisionError), prune(model, ByContent()):
            raise ZeroDivisionError
        context = prune(model, ByContent())
        with context:
            pass
        with pytest.raises(RuntimeError, match="can be opened once"), context:
            pass
        del context
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is NotEnteredWarning] == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategy": "no such strategy"},
        {"strategy": 3},
        {"strategy": "fastv(keep=3, layer=99)"},
        {"strategy": "random(keep=3)", "turns": "never"},
        {"strategy": "random(keep=3)", "positions": "elsewhere"},
        {"strategy": "fastv(keep=3, layer=1)", "turns": "freeze"},
    ],
)
def test_arguments_that_are_refused_do_not_warn(arguments: dict[str, Any]) -> None:
    model, _ = tiny()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises((ValueError, TypeError)):
            prune(model, **arguments)
        gc.collect()
    assert caught == []


@pytest.mark.parametrize("kind", [dict, BatchFeature, BatchEncoding])
def test_two_stars_are_asked_for(kind: type[Any]) -> None:
    model, make_inputs = tiny()
    inputs = kind(make_inputs(["what is in <3> then"]))
    with prune(model, ByContent()) as record:
        for call in (
            lambda: model.generate(inputs, max_new_tokens=2),
            lambda: model.generate(inputs=inputs),
            lambda: model.generate(input_ids=inputs),
            lambda: model(inputs),
            lambda: model(input_ids=inputs),
        ):
            with pytest.raises(TypeError, match=rf"{kind.__name__} with input_ids.*two stars.*generate\(\*\*inputs\)"):
                call()
        assert record.calls == ()
        model.generate(**inputs, max_new_tokens=2)
    for misplaced in ((ByContent(), inputs), (inputs,)):
        with pytest.raises(TypeError, match=r"two stars, prune_inputs\(model, strategy, \*\*inputs\)"):
            prune_inputs(model, *misplaced)
    assert "inputs_embeds" in prune_inputs(model, ByContent(), **inputs)
