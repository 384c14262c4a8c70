"""The published methods that act inside the decoder, against a language model and rules written out by hand."""

from itertools import count

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Rule, Stage, View, check_decoder, most_attended
from tests.models.oracle import BATCHES
from tests.models.test_decoder_generate import LAYERS, tiny
from tokenprune import prune
from tokenprune.baselines import DART, FastV, GridPool, PyramidDrop, PyramidDropStage
from tokenprune.core.places import Positions
from tokenprune.core.tokens import Tokens

MATRIX = [(attention, cache) for attention in ("sdpa", "eager") for cache in ("dynamic", "static")]


def dart_rule(keep: int, pivot_image: int = 4, pivot_text: int = 4) -> Rule:
    """DART in loops over plain numbers. Sums of |k| change under rotation, so absolute positions matter to it."""

    def rule(view: View) -> list[Tensor]:
        norms = view.keys.abs().sum((0, 2)).tolist()
        states = torch.nn.functional.normalize(view.normed, dim=1)
        cosine = (states @ states.T).tolist()
        taken = {int(column) for image in view.images for column in image}
        kept = []
        for image in view.images:
            own = image.tolist()
            text = [c for c in range(own[-1], len(norms)) if c not in taken]
            pivots = sorted(own, key=lambda c: (-norms[c], c))[: min(pivot_image, keep)]
            steering = [*pivots, *sorted(text, key=lambda c: (-norms[c], c))[:pivot_text]]
            stay = set(pivots)
            left = keep - len(pivots)
            for turn, pivot in enumerate(steering):
                quota = left // len(steering) + (turn < left % len(steering))
                free = [c for c in own if c not in stay]
                stay.update(sorted(free, key=lambda c: (cosine[pivot][c], c))[:quota])
            kept.append(torch.tensor([place for place, c in enumerate(own) if c in stay]))
        return kept

    return rule


@pytest.mark.parametrize("batch", ["padded", "equal length", "one row", "two images", "side by side"])
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", [None, "original"])
def test_pyramiddrop(positions: Positions | None, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    counts = {1: 10, 2: 6, 3: 4}  # 16 (4 / 16)^(1/3) = 10.08, 16 (4 / 16)^(2/3) = 6.35
    stages = [
        Stage(layer, positions or "compact", most_attended(lambda key, left, kept=kept: kept, following=True))  # type: ignore[misc]
        for layer, kept in counts.items()
    ]
    strategy = PyramidDrop(0.25, layers=(1, 2, 3))
    record = check_decoder(
        model, make_inputs(BATCHES[batch]), strategy, stages, positions=positions, cache_implementation=cache
    )
    for image in record.images:
        assert image.layer_tokens == (16, 10, 6, 4)
        assert image.positions == (positions or "compact")
        assert [stage.tokens_out for stage in image.stages] == [10, 6, 4]


@pytest.mark.parametrize("batch", ["padded", "equal length", "one row", "two images", "side by side"])
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("keep", [2, 7, 12])
def test_dart(keep: int, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    stages = [Stage(2, "original", dart_rule(keep))]
    check_decoder(
        model,
        make_inputs(BATCHES[batch]),
        DART(keep),
        stages,
        positions=None,
        cache_implementation=cache,
    )


def test_methods_chain_and_follow_merging() -> None:
    model, make_inputs = tiny()
    inputs = make_inputs(BATCHES["two images"])
    stages = [
        Stage(1, "original", most_attended(lambda key, left: 7)),
        Stage(2, "compact", most_attended(lambda key, left: 5, following=True)),
        Stage(3, "original", dart_rule(3)),
    ]
    strategy = GridPool(9) >> FastV(7, layer=1) >> PyramidDropStage(5, layer=2) >> DART(3, layer=3)
    record = check_decoder(model, inputs, strategy, stages, positions=None, before=GridPool(9), policy="compact")
    assert all(image.merged and image.tokens_in == 16 for image in record.images)
    assert record.images[0].layer_tokens == (9, 7, 5, 3)


@pytest.mark.parametrize("strategy", [PyramidDrop(4, layers=(1, 3)), DART(5), FastV(5)], ids=repr)
def test_beams_of_a_batch_equal_single_rows(strategy: FastV) -> None:
    model, make_inputs = tiny()
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    prompts = BATCHES["padded"]
    with prune(model, strategy) as together:
        many = model.generate(**make_inputs(prompts), **settings)
    for row, prompt in enumerate(prompts):
        with prune(model, strategy) as alone:
            single = model.generate(**make_inputs([prompt]), **settings)
        assert torch.equal(many[row, -4:], single[0, -4:])
        assert torch.equal(together.images[row].indices, alone.images[0].indices)


def test_a_probe_runs_projections_once_more_and_nothing_else() -> None:
    model, make_inputs = tiny()
    layers = model.model.language_model.layers
    calls: dict[str, int] = {}

    def counted(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    handles = [
        module.register_forward_hook(lambda *_, name=f"{number} {name}": counted(name))
        for number, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if name in ("", "mlp", "self_attn", "self_attn.k_proj", "self_attn.o_proj")
    ]
    with prune(model, PyramidDrop(4, layers=(1, 3))):
        model.generate(**make_inputs(BATCHES["padded"]), max_new_tokens=3)
    for handle in handles:
        handle.remove()
    probed = {"1 self_attn.k_proj", "3 self_attn.k_proj"}
    assert calls == {name: 3 + (name in probed) for name in calls}
    assert len(calls) == 5 * LAYERS


def test_budgets_of_a_pyramid() -> None:
    tokens = Tokens(torch.zeros(576, 2))
    for keep in (72, 0.125):
        assert [stage.count(tokens) for stage in PyramidDrop(keep).stages] == [288, 144, 72]
    assert [stage.count(tokens) for stage in PyramidDrop(64, layers=(4, 8, 12, 16)).stages] == [333, 192, 111, 64]
    for keep, steps in zip((1, 5, 0.3, 576, 900), count(1), strict=False):
        stages = PyramidDrop(keep, layers=tuple(range(1, steps + 1))).stages
        counts = [stage.count(tokens) for stage in stages]
        assert counts == sorted(counts, reverse=True)
    for layers in ((3, 2), (2, 2), (), 5, "8", (0, 1)):
        with pytest.raises((TypeError, ValueError), match="PyramidDrop"):
            PyramidDrop(0.5, layers=layers)  # type: ignore[arg-type]


def test_dart_keeps_what_the_program_keeps_where_the_budget_divides() -> None:
    from tokenprune.baselines.dart import dart

    generator = torch.Generator().manual_seed(0)
    states, keys = torch.randn(90, 8, generator=generator), torch.randn(90, 6, generator=generator)
    tokens = Tokens(
        torch.zeros(80, 2),
        decoder_states=states[:80],
        decoder_keys=keys[:80],
        decoder_text_states=states[80:],
        decoder_text_keys=keys[80:],
    )
    expected = dart(states, keys[None], image_start=0, n_image=80, per_pivot=3).retained
    assert torch.equal(DART(4 + 24).select(tokens).indices, expected)
    with pytest.raises(ValueError, match="one per pivot"):
        dart(states, keys[None], image_start=0, n_image=80, per_pivot=[3, 3])
