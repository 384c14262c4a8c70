"""What holds whatever is kept: keep-all, removal against masking, batches against rows, order, padding, seeds."""

from typing import Any

import pytest
import torch

from tests.models.oracle import BATCHES, ByContent, KeepAll, features_of, tiny
from tokenprune import GreedyRepMax, PruningStrategy, TrimTokenator, prune
from tokenprune.baselines import Random
from tokenprune.models import Record, adapter_for, build_prompt, compact, select_tokens
from tokenprune.testing import reference_logits

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_all_is_bit_identical_to_the_plain_model(attention: str, batch: str, positions: Any) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES[batch])
    plain = model.generate(**inputs, **SETTINGS)
    with prune(model, KeepAll(), positions=positions) as record:
        same = model.generate(**inputs, **SETTINGS)
    assert torch.equal(plain.sequences, same.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))
    assert record.kept_share == 1.0


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("batch", BATCHES)
def test_keep_all_is_bit_identical_through_the_cutting_too(batch: str, positions: Any) -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES[batch])
    adapter = adapter_for(model)
    with torch.no_grad():
        prompt = build_prompt(adapter, inputs, adapter.encode(inputs))
        selections, _ = select_tokens(KeepAll(), prompt)
        cut = compact(prompt, selections, positions=positions, shortcut=False)
        whole = compact(prompt, selections, positions=positions)
    assert whole.embeds is prompt.embeds
    assert torch.equal(cut.positions, whole.positions)
    assert torch.equal(cut.columns, whole.columns)
    plain = model.generate(**inputs, **SETTINGS)
    forced = model.generate(**cut.generate_kwargs(), **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, forced.logits, strict=True))
    assert torch.equal(cut.restore(forced.sequences), plain.sequences)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_removal_equals_the_whole_prompt_with_removed_tokens_masked(attention: str) -> None:
    model, make_inputs = tiny(attention)
    prompts = BATCHES["two images"]
    inputs = make_inputs(prompts)
    with prune(model, ByContent(), positions="original") as record:
        output = model.generate(**inputs, **SETTINGS)
    features = features_of(model, inputs)
    for row, ids in enumerate(inputs["input_ids"]):
        mine = [j for j, image in enumerate(record.images) if image.prompt == row]
        masked = reference_logits(
            model,
            ids[inputs["attention_mask"][row].bool()],
            [features[j] for j in mine],
            [record.images[j].indices for j in mine],
            positions="original",
            steps=5,
            masked=True,
        )
        assert (torch.stack(output.logits, 1)[row] - masked.logits).abs().max() <= 1e-5


def test_the_oracle_can_tell_policies_and_selections_apart() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(["what is in <0> then"])
    features, ids = features_of(model, inputs), inputs["input_ids"][0]
    kept = torch.tensor([1, 4, 5, 11])
    base = reference_logits(model, ids, features, [kept], positions="compact").logits
    for other, positions in (
        (kept, "original"),
        (kept + 1, "compact"),
        (kept[:3], "compact"),
        (kept.flip(0), "compact"),
    ):
        changed = reference_logits(model, ids, features, [other], positions=positions).logits
        assert (base[0] - changed[0]).abs().max() > 1e-3


def kept_by_image(record: Record) -> list[list[int]]:
    return [image.indices.tolist() for image in record.images]


@pytest.mark.parametrize("strategy", [ByContent(), Random(4), GreedyRepMax(5), TrimTokenator(5)], ids=repr)
def test_batch_order_and_padding_do_not_change_what_is_kept(strategy: PruningStrategy) -> None:
    model, make_inputs = tiny()
    prompts = ["look at <0> now", "<1> what is it", "tell me more about the things in <2> please"]
    settings: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False}
    with prune(model, strategy) as together:
        model.generate(**make_inputs(prompts), **settings)
    with prune(model, strategy) as alone:
        for prompt in prompts:
            model.generate(**make_inputs([prompt]), **settings)
    with prune(model, strategy) as turned:
        model.generate(**make_inputs(prompts[::-1]), **settings)
    with prune(model, strategy) as right:
        model.generate(**make_inputs(prompts, padding_side="right"), **settings)
    with prune(model, strategy) as forward:
        model(**make_inputs(prompts))
    assert kept_by_image(together) == kept_by_image(alone) == kept_by_image(turned)[::-1]
    assert kept_by_image(together) == kept_by_image(right) == kept_by_image(forward)


@pytest.mark.parametrize("strategy", [ByContent(), Random(4), GreedyRepMax(5)], ids=repr)
def test_order_of_images_in_a_prompt_does_not_change_what_is_kept(strategy: PruningStrategy) -> None:
    model, make_inputs = tiny()
    with prune(model, strategy) as record:
        for prompt in ("see <0> <1> and <2> now", "see <2> <0> and <1> now"):
            model.generate(**make_inputs([prompt]), max_new_tokens=1)
    kept = kept_by_image(record)
    assert kept[:3] == [kept[4], kept[5], kept[3]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_gives_the_logits_of_its_rows(attention: str) -> None:
    model, make_inputs = tiny(attention)
    prompts = BATCHES["two images"]
    with prune(model, ByContent()):
        batch = torch.stack(model.generate(**make_inputs(prompts), **SETTINGS).logits, 1)
        for row, prompt in enumerate(prompts):
            alone = torch.stack(model.generate(**make_inputs([prompt]), **SETTINGS).logits, 1)
            assert (batch[row] - alone[0]).abs().max() <= 1e-5
