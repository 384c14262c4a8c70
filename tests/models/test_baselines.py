"""The published methods through `prune` on a model: signals arrive, budgets hold, merged tokens are the right ones."""

import pytest
import torch

from tokenprune import PruningStrategy, prune
from tokenprune.baselines import DivPrune, FasterVLM, HiRED, PruMerge, PruMergePlus, VisionZip, VisPruner
from tokenprune.baselines.prumerge import prumerge
from tokenprune.baselines.visionzip import visionzip, visionzip_budget
from tokenprune.models import prune_inputs
from tokenprune.testing.tiny.models import tiny_llava

PROMPTS = ["look at <0> now", "<1> what is it and why"]
STRATEGIES: list[PruningStrategy] = [
    DivPrune(5),
    FasterVLM(5),
    HiRED(5),
    VisPruner(5),
    VisionZip(8),
    PruMerge(5),
    PruMerge(),
    PruMergePlus(5),
    VisionZip(8) >> DivPrune(5),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_methods_run_on_a_model(strategy: PruningStrategy) -> None:
    model, make_inputs = tiny_llava()
    with prune(model, strategy) as record:
        model.generate(**make_inputs(PROMPTS), max_new_tokens=2, do_sample=False)
    assert len(record.images) == 2
    for image in record.images:
        assert image.tokens_kept < image.tokens_in
        assert image.requested in (None, image.tokens_kept)
        assert image.merged == (strategy.yields == "merged")


def test_merged_tokens_are_those_of_the_tower() -> None:
    """VisionZip's and PruMerge's tokens, made here from a plain run of the vision tower with eager attention."""
    model, make_inputs = tiny_llava(attn_implementation="eager")
    inputs = make_inputs(PROMPTS)
    tower, projected = model.model.vision_tower, model.model.multi_modal_projector
    seen: dict[str, torch.Tensor] = {}
    layers = [layer for layer in tower.modules() if type(layer).__name__ == "CLIPAttention"]
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach()))
        for name, module in (("key", layers[-2].k_proj), ("q", layers[-1].q_proj), ("k", layers[-1].k_proj))
    ]
    with torch.no_grad():
        output = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    states, attention = output.hidden_states[-2], output.attentions[-2][:, :, 0, 1:]
    metric = seen["key"].unflatten(-1, (attention.shape[1], -1)).mean(2)
    zipped = visionzip(attention, states, metric, *visionzip_budget(8)).out_tokens
    merged = [made.out_tokens for made in prumerge(states, seen["q"][:, 0], seen["k"])]
    for strategy, rows in ((VisionZip(8), list(zipped)), (PruMerge(), merged)):
        pruned = prune_inputs(model, strategy, **inputs)  # type: ignore[arg-type]
        with torch.no_grad():
            expected = [projected(row) for row in rows]
        for row, image in enumerate(expected):
            found = pruned["inputs_embeds"][row]
            windows = found.unfold(0, len(image), 1).transpose(1, 2)
            distance = (windows - image).abs().amax((1, 2))
            assert distance.min() < 1e-5, f"{strategy!r}: row {row} does not hold the merged tokens in their order"
