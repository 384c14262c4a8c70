"""The shape annotations of the model code hold: pruning once more with each of them checked at run time."""

import subprocess
import sys
from pathlib import Path

CODE = """
from jaxtyping import install_import_hook

with install_import_hook(["tokenprune.models", "tokenprune.testing.reference"], "beartype.beartype"):
    import tokenprune.models
    from tokenprune.models.reading import vision

import pytest
import torch
from tests.models.oracle import BATCHES, EVERYTHING, ByContent, InPickOrder, check_generate, tiny
from tokenprune.core.signals import declared
from tokenprune import prune, prune_inputs
from tokenprune.baselines import GridPool
from tokenprune.models import adapter_for, build_prompt
from tokenprune.testing import tiny_llava

with pytest.raises(Exception, match="image_keys"):
    vision.image_keys(torch.zeros(3, dtype=torch.int64))
model, make_inputs = tiny()
inputs = make_inputs(BATCHES["two images"])
for strategy in (ByContent(), InPickOrder(), GridPool(4)):
    for positions in ("original", "compact"):
        check_generate(model, inputs, strategy, positions)
        prune_inputs(model, strategy, positions=positions, **inputs, labels=inputs["input_ids"])
with prune(model, ByContent()):
    model(**inputs, labels=inputs["input_ids"])
deep, _ = tiny_llava(layers=4)
inside = "grid_pool(keep=9) >> fastv(keep=7, layer=1) >> pyramiddrop_stage(keep=5, layer=2) >> dart(keep=3, layer=3)"
for positions in (None, "original", "compact"):
    with prune(deep, inside, positions=positions) as record:
        deep.generate(**inputs, max_new_tokens=3, num_beams=2)
        deep(**inputs)
    assert {image.tokens_kept for image in record.images} == {3}
adapter = adapter_for(model)
build_prompt(adapter, inputs, adapter.encode(inputs, EVERYTHING)).tokens()
from tests.models import family_oracle

for family in family_oracle.FAMILIES:
    model, make_inputs = family_oracle.tiny(family)
    adapter = adapter_for(model)
    videos = "pixel_values_videos" in adapter.visual_keys
    inputs = make_inputs(["see <0> and [1] there" if videos else "see <0> and <1> there", "no image"])
    for positions in ("original", "compact"):
        family_oracle.check_family(family, "sdpa", inputs, InPickOrder(), positions)
    known = [signal for signal in declared() if adapter.why_not(signal) is None]
    build_prompt(adapter, inputs, adapter.encode(inputs, known)).tokens()
    if "decoder" in adapter.sites:
        with prune(model, "greedy_repmax(keep=0.5) >> pyramiddrop_stage(keep=4, layer=2) >> fastv(keep=3, layer=3)"):
            model.generate(**inputs, max_new_tokens=3, num_beams=2)
print("done")
"""


def test_annotated_shapes_hold() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "done"
