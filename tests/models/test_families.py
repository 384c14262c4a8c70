"""Every family of models: each decoding step's logits against references without padding or cache."""

import itertools
from typing import Any

import pytest
import torch

from tests.models.decoder_oracle import Attended, InDecoder, Stage, by_content, most_attended
from tests.models.family_oracle import BATCHES, FAMILIES, IN_DECODER, VIDEO_BATCHES, check_family, check_inside, tiny
from tests.models.oracle import ByContent, InPickOrder, KeepAll, traces
from tokenprune import prune
from tokenprune.models import adapter_for

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
