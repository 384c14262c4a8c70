"""The shape annotations of the analyses hold: all of them once more, with each annotation checked at run time."""

import subprocess
import sys
from pathlib import Path

CODE = """
from jaxtyping import install_import_hook

with install_import_hook("tokenprune.analysis", "beartype.beartype"):
    import tokenprune.analysis

import pytest
import torch
from tests.unit.analysis.clouds import random_image
from tokenprune import GreedyRepMax, MIAlignment
from tokenprune.analysis import (
    analyse_alignment, analyse_redundancy, analyse_spatial, cross_score, effective_rank, split_score
)
from tokenprune.baselines import GridPool

with pytest.raises(Exception, match="effective_rank"):
    effective_rank(torch.zeros(3))
images = [random_image(i, name=f"i{i}") for i in range(2)]
analyse_alignment(images, [MIAlignment(0.5), MIAlignment(0.5, text="question")])
analyse_redundancy(images)
analyse_spatial(images, [GreedyRepMax(4), GridPool(4)])
cross_score(images, [GreedyRepMax(4), GridPool(4), MIAlignment(1)])
split_score(images[0].tokens.visual, images[0].tokens.text).variance_shares
print("done")
"""


def test_annotated_shapes_hold() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "done"
