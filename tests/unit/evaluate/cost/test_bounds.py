"""Rooflines, break-evens and configurations: arithmetic against naive searches."""

import itertools
from pathlib import Path

import pytest
import torch

from tokenprune.evaluate.cost import DecoderShape, TowerShape, counted_flops, prefill_flops
from tokenprune.evaluate.cost.break_even import Pace, Point, output_lengths, token_break_even
from tokenprune.evaluate.cost.configs import (
    CONFIGS,
    find_config,
    llava_15_7b,
    llava_next_7b,
    random_model,
    random_pictures,
    random_prompts,
    tiny,
    visual_tokens,
)
from tokenprune.evaluate.cost.roofline import Roofline, probed, roofline_of
from tokenprune.models import adapter_for
from tokenprune.testing import tiny_llava

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.mark.parametrize("first", [80.0, 100.0, 120.0])
@pytest.mark.parametrize("step", [3.0, 4.0, 5.0, 5.5])
def test_output_lengths_equal_those_of_a_search(first: float, step: float) -> None:
    dense, pruned = Pace(first=100, step=4), Pace(first=first, step=step)
    won = [t for t in range(1, 200) if pruned.until(t) < dense.until(t)]
    found = output_lengths(dense, pruned)
    if not won:
        assert str(found) == "never"
        return
    assert found.first == won[0]
    assert won == list(range(won[0], won[-1] + 1))
    assert found.last == (None if won[-1] == 199 else won[-1])


def test_tokens_from_which_pruning_pays() -> None:
    def points(*gains: float) -> list[Point]:
        return [Point(tokens=100 * (i + 1), saved=10 + gain, spent=10) for i, gain in enumerate(gains)]

    assert token_break_even(points(-2, -1, 1, 5)) == 250
    assert token_break_even(points(3, -1, 1, 5)) == 250  # a lucky small size does not count
    assert token_break_even(points(1, 2)) == 100
    assert token_break_even(points(1, -2)) is None
    assert token_break_even(list(reversed(points(-2, -1, 1, 5)))) == 250
    with pytest.raises(ValueError, match="empty"):
        token_break_even([])


def test_the_roofline_is_the_slower_of_the_two() -> None:
    roof = Roofline(flops=2e12, bandwidth=1e12, source="")
    for flops, moved in itertools.product((1e9, 4e9), (1e9, 3e9)):
        assert roof.milliseconds(flops, moved) == 1000 * max(flops / 2e12, moved / 1e12)
        assert roof.bound(flops, moved) == ("compute" if flops / 2e12 >= moved / 1e12 else "memory")
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        Roofline(flops=1.0, bandwidth=0.0, source="")


def test_given_figures_win_over_measured_ones() -> None:
    found = probed(CPU, torch.float32, sizes=(64, 96))
    assert found.flops > 0
    assert found.bandwidth > 0
    given = roofline_of(CPU, torch.float32, flops=1e12, bandwidth=2e11)
    assert (given.flops, given.bandwidth, given.source) == (1e12, 2e11, "flops, bandwidth as given")


@pytest.mark.parametrize("config", [llava_15_7b(), tiny()], ids=["llava-1.5-7b", "tiny"])
def test_formula_and_counter_agree_at_full_size_without_memory(config: object) -> None:
    model = random_model(config, device=META, dtype=torch.bfloat16)
    decoder, tower = DecoderShape.of(config), TowerShape.of(config)
    prompt = torch.empty(2, 640, decoder.width, device=META, dtype=torch.bfloat16)
    pixels = torch.empty(2, 3, tower.side, tower.side, device=META, dtype=torch.bfloat16)
    lengths = [640] * decoder.layers
    formula = prefill_flops(decoder, lengths, rows=2, tower=tower, pictures=2, causal="full")
    language = counted_flops(lambda: model.model.language_model(inputs_embeds=prompt)).total
    assert language == formula.layers + formula.attention
    assert counted_flops(lambda: model.model.vision_tower(pixels)).total == formula.tower
    features = torch.empty(2, tower.patches, tower.features, device=META, dtype=torch.bfloat16)
    assert counted_flops(lambda: model.model.multi_modal_projector(features)).total == formula.projector


def test_the_sizes_of_the_7b_models() -> None:
    config = llava_15_7b()
    decoder, tower = DecoderShape.of(config), TowerShape.of(config)
    assert (decoder.matrix, tower.patches, visual_tokens(config)) == (202375168, 576, 576)
    assert decoder.layers * decoder.kv_bytes(2) == 512 * 1024
    # Published: 7.06 billion parameters in the checkpoint of LLaVA-1.5-7B.
    model = random_model(config, device=META, dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(7.06e9, rel=0.01)
    assert visual_tokens(llava_next_7b()) == 576 + 48 * 49


def test_configurations_are_found_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_config("tiny").get_text_config().hidden_size == 256
    model, _ = tiny_llava()
    model.config.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        assert DecoderShape.of(find_config(str(path))) == DecoderShape.of(model.config)
    with pytest.raises(ValueError, match="must be one of tiny, llava-1.5-7b"):
        find_config("llava-2")
    model.config.model_type = "something_else"
    monkeypatch.setitem(CONFIGS, "other", lambda: model.config)
    with pytest.raises(ValueError, match="no adapter prunes the family 'something_else'"):
        find_config("other")


def test_random_models_take_random_prompts_and_never_end() -> None:
    config = tiny_llava()[0].config
    model = random_model(config, device=CPU, dtype=torch.float32)
    again = random_model(config, device=CPU, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    pictures = random_pictures(config, 2, dtype=torch.float32, device=CPU)
    vision = adapter_for(model).encode(pictures)
    assert vision.counts == (visual_tokens(config),) * 2
    prompts = random_prompts(config, vision.counts, 6, device=CPU)
    assert prompts["input_ids"].shape == (2, 22)
    output = model.generate(**prompts, **pictures, max_new_tokens=3, do_sample=False)
    assert output.shape == (2, 25)
    with pytest.raises(ValueError, match="counts must be equal"):
        random_prompts(config, (3, 4), 6, device=CPU)
