"""Every family of models: each decoding step's logits against references without padding or cache."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Attended, InDecoder, Rule, Stage, View, by_content, most_attended
from tests.models.family_oracle import BATCHES, FAMILIES, IN_DECODER, VIDEO_BATCHES, check_family, check_inside, tiny
from tests.models.oracle import ByContent, InPickOrder, KeepAll, traces
from tests.parity import references
from tokenprune import prune, prune_inputs
from tokenprune.baselines import VTW, FitPruneStage, SparseVLM
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.models import UnsupportedError, adapter_for, build_prompt, compact, select_tokens

ATTENTION = ["sdpa", "eager"]
POSITIONS = ["original", "compact"]
CACHES = ["dynamic", "static"]
# A subset in which every value meets every batch: the full product is run by `make test-matrix`.
SUBSET = [
    ("padded", "sdpa", "original", "dynamic"),
    ("padded", "eager", "compact", "static"),
    ("equal length", "sdpa", "compact", "dynamic"),
    ("equal length", "sdpa", "original", "static"),
    ("one row", "eager", "original", "dynamic"),
    ("several images", "sdpa", "compact", "static"),
    ("several images", "eager", "original", "dynamic"),
]
MATRIX = [
    pytest.param(*case, marks=[] if case in SUBSET else [pytest.mark.matrix])
    for case in itertools.product(BATCHES, ATTENTION, POSITIONS, CACHES)
]


def number(key: int, left: int) -> int:
    """How many tokens `Attended` keeps."""
    return 3 + key % 9


@pytest.mark.parametrize(("batch", "attention", "positions", "cache"), MATRIX)
@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_language_model(family: str, batch: str, attention: str, positions: Any, cache: str) -> None:
    inputs = tiny(family)[1](BATCHES[batch])
    strategy = InPickOrder() if batch == "several images" else ByContent()
    record = check_family(family, attention, inputs, strategy, positions, cache_implementation=cache)
    kept = {image.tokens_kept for image in record.calls[0].images}
    assert len(record.calls[0].images) == 1 or len(kept) > 1, "the batch must keep different numbers"


@pytest.mark.parametrize(("batch", "attention", "positions", "cache"), MATRIX)
@pytest.mark.parametrize("family", IN_DECODER)
def test_inside_the_decoder(family: str, batch: str, attention: str, positions: Any, cache: str) -> None:
    inputs = tiny(family)[1](BATCHES[batch])
    stages = [Stage(2, positions, most_attended(number))]
    record = check_inside(family, attention, inputs, Attended(), stages, positions, cache_implementation=cache)
    kept = {image.tokens_kept for image in record.images}
    assert len(record.images) == 1 or len(kept) > 1, "the batch must keep different numbers"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", IN_DECODER)
def test_stages_before_and_inside(family: str, positions: Any) -> None:
    inputs = tiny(family)[1](BATCHES["padded"])
    first, second = InDecoder(seed=5, layer=2), Attended(seed=0, layer=3)
    stages = [Stage(2, positions, by_content(first)), Stage(3, positions, most_attended(number))]
    strategy = ByContent(seed=3) >> first >> second
    check_inside(family, "sdpa", inputs, strategy, stages, positions, before=ByContent(seed=3), policy=positions)


def least_received(drop: int) -> Rule:
    """FitPrune's rule, where a stage behind the layer leaves the same as one within it."""

    def rule(view: View) -> list[Tensor]:
        taken = {int(slot) for image in view.images for slot in image}
        kept = []
        for image in view.images:
            text = [slot for slot in range(int(image[-1]), view.attention.shape[1]) if slot not in taken]
            rows = view.attention[:, [*image.tolist(), *text]][:, :, image].numpy()
            kept.append(torch.from_numpy(references.fitprune(rows, n_image=len(image), delete=drop)))
        return kept

    return rule


@pytest.mark.parametrize("batch", ["padded", "one row"])
@pytest.mark.parametrize("family", IN_DECODER)
def test_cuts_within_a_layer_and_withdrawal(family: str, batch: str) -> None:
    inputs = tiny(family)[1](BATCHES[batch])
    strategy = FitPruneStage(3, layer=2) >> VTW(layer=3)
    stages = [
        Stage(2, "original", least_received(3)),
        Stage(3, "original", lambda view: [torch.arange(0) for _ in view.images]),
    ]
    record = check_inside(family, "sdpa", inputs, strategy, stages, "original")
    assert all(image.tokens_kept == 0 < image.layer_tokens[2] for image in record.images)


@pytest.mark.parametrize("family", IN_DECODER)
def test_tokens_made_inside_the_decoder_in_a_batch_equal_single_rows(family: str) -> None:
    model, make_inputs = tiny(family)
    strategy = SparseVLM(3, schedule=(5, 3), layers=(2, 3))
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with prune(model, strategy) as together:
        many = model.generate(**make_inputs(BATCHES["padded"]), **settings)
    assert all(image.extra_tokens for image in together.images)
    for row, prompt in enumerate(BATCHES["padded"]):
        with prune(model, strategy):
            single = model.generate(**make_inputs([prompt]), **settings)
        for a, b in zip(many.logits, single.logits, strict=True):
            assert (a[row] - b[0]).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_plain_model_to_the_last_bit(family: str, attention: str) -> None:
    model, make_inputs = tiny(family, attention)
    settings = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    for batch in ("padded", "several images"):
        inputs = make_inputs(BATCHES[batch])
        plain, plain_forward = model.generate(**inputs, **settings), model(**inputs).logits
        before = traces(model)
        for positions in POSITIONS:
            with prune(model, KeepAll(), positions=positions) as record:  # type: ignore[arg-type]
                same, forward = model.generate(**inputs, **settings), model(**inputs).logits
            assert torch.equal(torch.stack(plain.logits), torch.stack(same.logits))
            assert torch.equal(plain.sequences, same.sequences)
            assert torch.equal(plain_forward, forward)
            assert record.kept_share == 1.0
        assert traces(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_keeps_what_its_rows_keep(family: str) -> None:
    model, make_inputs = tiny(family)
    kept = []
    for side in ("left", "right"):
        with prune(model, ByContent()) as together:
            many = model.generate(
                **make_inputs(BATCHES["several images"], padding_side=side), max_new_tokens=3, do_sample=False
            )
        kept.append(together.images)
    alone = []
    for i, prompt in enumerate(BATCHES["several images"]):
        with prune(model, ByContent()) as record:
            single = model.generate(**make_inputs([prompt]), max_new_tokens=3, do_sample=False)
        assert torch.equal(single[0, -3:], many[i, -3:])
        alone.extend(record.images)
    for left, right, one in zip(*kept, alone, strict=True):
        assert left.indices.tolist() == right.indices.tolist() == one.indices.tolist()


@pytest.mark.parametrize("batch", VIDEO_BATCHES)
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if "pixel_values_videos" in adapter_for(tiny(family)[0]).visual_keys]
)
def test_videos(family: str, batch: str) -> None:
    inputs = tiny(family)[1](VIDEO_BATCHES[batch])
    for positions in POSITIONS:
        check_family(family, "sdpa", inputs, ByContent(), positions)  # type: ignore[arg-type]
    stages = [Stage(2, "original", most_attended(number))]
    check_inside(family, "sdpa", inputs, Attended(), stages, "original")


QWEN = [family for family in FAMILIES if "qwen" in family]


@pytest.mark.parametrize("family", QWEN)
def test_the_axis_that_generate_counts_on_has_no_gaps(family: str) -> None:
    model, make_inputs = tiny(family)
    inputs = make_inputs(BATCHES["several images"])
    adapter = adapter_for(model)
    with torch.no_grad():
        prompt = build_prompt(adapter, inputs, adapter.encode(inputs, {IMAGE_KEY}))
    selections, _ = select_tokens(ByContent(), prompt)
    pruned = compact(prompt, selections, positions="original")
    columns, mask = pruned.positions[0], pruned.mask.bool()
    assert torch.equal(columns, (mask.long().cumsum(1) - 1).masked_fill(~mask, 0))
    assert not torch.equal(pruned.positions[1], columns)


@pytest.mark.parametrize("family", QWEN)
def test_positions_of_the_caller_and_what_they_need(family: str) -> None:
    model, make_inputs = tiny(family)
    inputs = make_inputs(BATCHES["padded"])
    settings = {"max_new_tokens": 3, "do_sample": False}
    with prune(model, ByContent(), positions="original"):
        expected = model.generate(**inputs, **settings)
        rotary, _ = model.model.get_rope_index(**inputs)
        for given in (rotary, torch.cat([(inputs["attention_mask"].cumsum(1) - 1).clamp(0)[None], rotary])):
            assert torch.equal(model.generate(**inputs, **settings, position_ids=given), expected)
        with pytest.raises(ValueError, match=r"position_ids are \(3, \d+\) but the prompts"):
            model.generate(**inputs, **settings, position_ids=rotary[0])
        with pytest.raises(ValueError, match="mm_token_type_ids and grids are missing"):
            model.generate(**{**inputs, "mm_token_type_ids": None}, **settings)


def test_features_that_the_decoder_adds_are_cut_with_the_tokens() -> None:
    model, make_inputs = tiny("qwen3_vl")
    inputs = make_inputs(BATCHES["several images"])
    with pytest.raises(UnsupportedError, match="Qwen3VLForConditionalGeneration adds features to the visual tokens"):
        prune_inputs(model, ByContent(), **inputs)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="from layer 2 on, because its first decoder layers add features"):
        prune(model, "fastv(keep=4, layer=1)")
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    with prune(model, ByContent()):
        many = model.generate(**inputs, **settings)
        rows = [model.generate(**make_inputs([prompt]), **settings) for prompt in BATCHES["several images"]]
    assert all(torch.equal(many[i, -4:], row[0, -4:]) for i, row in enumerate(rows))


def test_features_meant_for_a_forward_that_failed_do_not_reach_the_next_one() -> None:
    model, make_inputs = tiny("qwen3_vl")
    inputs, text = make_inputs(["see <0> here"]), make_inputs(["only words"])
    plain = model(**text).logits
    before = traces(model)
    with prune(model, ByContent()):
        handle = model.model.register_forward_pre_hook(fail)
        with pytest.raises(PlannedError):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**text).logits, plain)
        handle = model.model.register_forward_pre_hook(fail)
        with pytest.raises(PlannedError):
            model(**inputs)
        handle.remove()
    assert traces(model) == before


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_a_call_that_goes_past_the_features_raises(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Someone who calls `language_model.forward` runs no hooks: the logits would be wrong without a word."""
    model, make_inputs = tiny("qwen3_vl")
    inputs, text, before = make_inputs(["see <0> here"]), make_inputs(["only words"]), traces(model)
    plain = model(**text).logits
    language = model.model.language_model
    with prune(model, ByContent()):
        right = model(**inputs).logits
        with monkeypatch.context() as patch:
            patch.setattr(type(language), "__call__", lambda self, *args, **kwargs: self.forward(*args, **kwargs))
            run = model if call == "forward" else partial(model.generate, max_new_tokens=1)
            with pytest.raises(RuntimeError, match="did not reach the language model: it was not called as usual"):
                run(**inputs)
        assert torch.equal(model(**text).logits, plain)
        assert torch.equal(model(**inputs).logits, right)
    assert traces(model) == before


class PlannedError(Exception):
    """Raised on purpose."""


def fail(*args: Any) -> None:
    raise PlannedError
