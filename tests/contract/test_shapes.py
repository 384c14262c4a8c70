"""Shape annotations are true: the contract suite once more, with every annotated function checked at run time."""

import subprocess
import sys
from pathlib import Path

CODE = """
from jaxtyping import install_import_hook

MODULES = [f"tokenprune.{name}" for name in ("kernels", "core", "alignment", "baselines", "repmax", "trimtokenator")]
with install_import_hook(MODULES, "beartype.beartype"):
    import tokenprune
    from tokenprune import strategies

import pytest
import torch
from tokenprune.kernels import top_k
from tokenprune.core.text import example
from tokenprune.testing import random_tokens

# The hook is on: a wrong tensor is refused by the annotation alone.
with pytest.raises(Exception, match="top_k"):
    top_k(torch.zeros(3, dtype=torch.int64), 1)

ran = 0
for _, cls in sorted(strategies().items()):
    strategy = example(cls)
    for tokens in (random_tokens(), random_tokens(5, 3, seed=4), random_tokens(dtype=torch.bfloat16)):
        strategy.select(tokens)
        strategy.select_batch([tokens, random_tokens(2, 2)])
        ran += 1
print("ran", ran)
"""


def test_annotated_shapes_hold() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 18
