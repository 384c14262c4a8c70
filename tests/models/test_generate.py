"""Every decoding step's logits under pruning against the hand-made reference."""

from itertools import pairwise

import pytest
import torch

from tests.models.oracle import BATCHES, ByContent, InPickOrder, check_generate, tiny
from tokenprune import MIAlignment, PruningStrategy, TrimTokenator
from tokenprune.baselines import GridPool, Random, UniformGrid
from tokenprune.core.places import Positions


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_step_equals_the_reference(attention: str, positions: Positions, batch: str, cache: str) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES[batch])
    record = check_generate(model, inputs, ByContent(), positions, cache_implementation=cache)
    kept = [image.tokens_kept for image in record.images]
    assert len(kept) == len(inputs["pixel_values"])
    assert len(kept) == 1 or any(a != b for a, b in pairwise(kept)), "the batch must keep different numbers"


@pytest.mark.parametrize(
    "strategy",
    [
        InPickOrder(),
        GridPool(5),
        UniformGrid(1),
        Random(0.5, seed=3),
        TrimTokenator(4),
        MIAlignment(0.8) >> UniformGrid(3),
        MIAlignment(6, text="prompt") >> InPickOrder(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_strategies_that_merge_reorder_or_chain(strategy: PruningStrategy, positions: Positions) -> None:
    model, make_inputs = tiny()
    check_generate(model, make_inputs(BATCHES["two images"]), strategy, positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_right_padding_gives_what_left_padding_gives(positions: Positions) -> None:
    model, make_inputs = tiny()
    left = check_generate(model, make_inputs(BATCHES["padded"]), ByContent(), positions)
    right = check_generate(model, make_inputs(BATCHES["padded"], padding_side="right"), ByContent(), positions)
    for a, b in zip(left.images, right.images, strict=True):
        assert torch.equal(a.indices, b.indices)


def test_a_missing_mask_is_inferred_from_padding_as_generate_does() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["padded"])
    from tokenprune import prune

    with prune(model, ByContent()) as record:
        given = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        without = {name: value for name, value in inputs.items() if name != "attention_mask"}
        inferred = model.generate(**without, max_new_tokens=3, do_sample=False)
    assert torch.equal(given, inferred)
    assert len(record.calls) == 2


def test_text_only_prompts_pass_unchanged() -> None:
    model, make_inputs = tiny()
    from tokenprune import prune

    inputs = make_inputs(["no image here", "nor here at all"])
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with prune(model, ByContent()) as record:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert record.images == []
    assert len(record.calls) == 3


def test_half_precision_runs() -> None:
    model, make_inputs = tiny()
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    from tokenprune import prune

    inputs = make_inputs(BATCHES["padded"])
    logits = []
    for m in (model, half):
        with prune(m, ByContent()) as record:
            out = m.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits.append(out.logits[0].float())
    scale = logits[0].abs().max()
    assert (logits[0] - logits[1]).abs().max() < 0.1 * scale
    assert [image.tokens_kept for image in record.images] != []
