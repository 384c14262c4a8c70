"""What a strategy is said to read of the prompt is what its choice depends on."""

from dataclasses import replace

import pytest
import torch

from tokenprune import MIAlignment, Tokens, strategies
from tokenprune.core.signals import CLIP_TEXT
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import example
from tokenprune.evaluate.contract import text_source
from tokenprune.testing import random_tokens


def with_text_changed(tokens: Tokens, name: str) -> Tokens:
    """The same image with another text: all of it, its question only, or in CLIP's space."""
    draw = torch.Generator().manual_seed(99)
    if name == "clip":
        return tokens.knowing({CLIP_TEXT: torch.randn(tokens[CLIP_TEXT].shape, generator=draw)})
    assert tokens.text is not None
    assert tokens.question is not None
    new = 9 * torch.randn(tokens.text.shape, generator=draw)
    changed = tokens.question if name == "question" else ~tokens.question
    return replace(tokens, text=torch.where(changed[:, None], new, tokens.text))


STRATEGIES = [example(cls) for cls in strategies().values()] + [MIAlignment(12, text="question")]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_only_what_is_said_to_be_read_changes_the_choice(strategy: PruningStrategy) -> None:
    source = text_source(strategy)
    images = [random_tokens(seed=seed) for seed in range(6)]
    before = [strategy.select(image).indices.tolist() for image in images]

    def changed(name: str) -> bool:
        return before != [strategy.select(with_text_changed(image, name)).indices.tolist() for image in images]

    parts = source.split("+")
    assert changed("clip") == ("clip" in parts)
    assert changed("question") == (not {"prompt", "question"}.isdisjoint(parts))
    assert changed("rest") == ("prompt" in parts)
    assert ("decoder" in parts) == any(signal.name.startswith("decoder_") for signal in strategy.needs)


def test_a_pipeline_reads_what_its_stages_read() -> None:
    from tokenprune import parse

    assert text_source(parse("mi_alignment(keep=0.8) >> greedy_repmax(keep=4) >> fastv(keep=2)")) == "prompt+decoder"
    assert text_source(None) == "none"
