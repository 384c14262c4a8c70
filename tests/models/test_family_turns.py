"""Later turns on the kept pruned cache, for every family, against a reference that knows no cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.family_oracle import FAMILIES, Dense, tiny
from tests.models.oracle import ByContent
from tokenprune import prune
from tokenprune.core.places import Positions
from tokenprune.evaluate.doctor import longer
from tokenprune.models import Record, UnsupportedError, adapter_for
from tokenprune.testing import reference_logits
from tokenprune.testing.tiny.models import EOS

STEPS = 3
FIRST = ["look at <0> now", "tell me more about the things in <2> please", "nothing to see"]
WORDS = [" and why is that so", " go on", " then say it"]
NEW_IMAGE = [" and why is that so", " go on with <5> too", " then say it"]


def say(first: dict[str, Tensor], told: Tensor, whole: dict[str, Tensor], cut: int = 0) -> dict[str, Tensor]:
    """`whole`, the arguments for both turns, with the answer of the first between them; left padded.

    Args:
        first: arguments of the first turn.
        told: what `generate` returned for it.
        whole: arguments for both turns without an answer.
        cut: tokens that are left out at the end of the answer.
    """
    shape, answers = first["input_ids"].shape, told[:, first["input_ids"].shape[1] : told.shape[1] - cut]
    per_column = [name for name, value in whole.items() if value.shape == whole["input_ids"].shape]
    rows: dict[str, list[Tensor]] = {name: [] for name in per_column}
    for row in range(shape[0]):
        here, there = first["attention_mask"][row].bool(), whole["attention_mask"][row].bool()
        length = int(here.sum())
        assert torch.equal(whole["input_ids"][row][there][:length], first["input_ids"][row][here])
        for name, found in rows.items():
            values = whole[name][row][there]
            said = answers[row] if name == "input_ids" else values[length - 1 : length].expand(len(answers[row]))
            found.append(torch.cat([values[:length], said, values[length:]]))
    width = max(len(ids) for ids in rows["input_ids"])
    padded = {
        name: torch.stack([torch.nn.functional.pad(value, (width - len(value), 0)) for value in found])
        for name, found in rows.items()
    }
    return {**whole, **padded}


def check(family: str, inputs: dict[str, Tensor], output: Any, kept: list[list[Tensor]], positions: str) -> None:
    """Logits of every step of every row."""
    logits, length = torch.stack(output.logits, dim=1), inputs["input_ids"].shape[1]
    sizes = counts(family, inputs)
    for row, indices in enumerate(kept):
        dense = Dense(family, inputs, row, sizes[row])
        expected = reference_logits(
            dense.model,
            dense.ids,
            dense.features,
            indices,
            positions=positions,
            steps=STEPS,
            tokens=output.sequences[row, length:],
            places=dense.places(),
            placeholders=dense.placeholders,
            forward=dense.forward(),
        )
        worst = (logits[row] - expected.logits).abs().max()
        assert worst <= 1e-5, f"row {row}: off by {worst}"


def counts(family: str, inputs: dict[str, Tensor]) -> list[list[int]]:
    """Tokens of the images of each row."""
    adapter = adapter_for(tiny(family)[0])
    every = list(adapter.encode(inputs).counts)
    ids = torch.tensor(sorted(adapter.image_token_ids))
    found = []
    for row in inputs["input_ids"]:
        left, mine = int(torch.isin(row, ids).sum()), []
        while left:
            mine.append(every.pop(0))
            left -= mine[-1]
        found.append(mine)
    assert not every
    return found


def kept_of(record: Record, call: int, rows: int) -> list[list[Tensor]]:
    images = record.calls[call].images
    return [[image.indices for image in images if image.prompt == row] for row in range(rows)]


def talk(
    family: str, prompts: list[str], more: list[str], positions: Positions, attention: str, cut: int = 0
) -> list[list[Tensor]]:
    """Three turns, the last with words only and without pixels; what is kept of the images of each row."""
    model, make_inputs = tiny(family, attention)
    settings = {
        "max_new_tokens": STEPS,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [*adapter_for(model).image_token_ids, EOS],
    }
    second = [a + b for a, b in zip(prompts, more, strict=True)]
    inputs = make_inputs(prompts)
    with torch.no_grad(), prune(model, ByContent(), positions=positions) as record:
        one = model.generate(**inputs, **settings)
        inputs = say(inputs, one.sequences, make_inputs(second), cut)
        two = model.generate(**inputs, past_key_values=one.past_key_values, **settings)
        ids = torch.cat([two.sequences, torch.tensor([[9, 8]]).expand(len(prompts), -1)], dim=1)
        longest: dict[str, Tensor] = dict(longer(inputs, ids, family))
        blind = {name: value for name, value in longest.items() if name not in adapter_for(model).visual_keys}
        three = model.generate(**blind, past_key_values=two.past_key_values, **settings)
    first, later = kept_of(record, 0, len(prompts)), kept_of(record, 1, len(prompts))
    kept = [a + b for a, b in zip(first, later, strict=True)]
    assert [call.cached > 0 for call in record.calls] == [False, True, True]
    assert not record.calls[2].images
    check(family, inputs, two, kept, positions)
    check(family, longest, three, kept, positions)
    return later


REGULAR = [family for family in FAMILIES if family not in ("paligemma", "gemma3")]
CASES = [
    *((f, c) for f in REGULAR for c in ("new image", "words")),
    ("qwen3_vl", "answer cut"),
    ("internvl", "answer cut"),
]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_two_more_turns(family: str, case: str) -> None:
    """Rows of different length, one of them without images."""
    image = case == "new image" and family != "llava_onevision"  # which encodes an image differently beside a second
    attention, positions = ("eager", "compact") if case == "words" else ("sdpa", "original")
    more = NEW_IMAGE if image else WORDS
    later = talk(family, FIRST, more, positions, attention, cut=2 * (case == "answer cut"))  # type: ignore[arg-type]
    assert [len(row) for row in later] == [0, int(image), 0], "only the new image is chosen from"


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_sliding_window_goes_with_a_cache_without_gaps(positions: Positions) -> None:
    """Masked slots between what is used would count for the window."""
    talk("gemma3", FIRST[1:2], WORDS[1:2], positions, "sdpa")
    talk("gemma3", FIRST[:1] * 2, WORDS[:1] * 2, positions, "eager")
    with pytest.raises(UnsupportedError, match="gaps between them"):
        talk("gemma3", FIRST, WORDS, positions, "sdpa")
    with pytest.raises(UnsupportedError, match="continue one prompt at a time with its whole answer"):
        talk("gemma3", FIRST[:1], WORDS[:1], positions, "sdpa", cut=2)
