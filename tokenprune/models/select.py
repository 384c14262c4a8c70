"""Running a strategy on a prompt, timed; and whether it fits the model at all."""

import time

import torch

from tokenprune.models.adapter import Adapter
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt import Prompt
from tokenprune.parsing import parse
from tokenprune.pipeline import StagedStrategy
from tokenprune.strategy import PruningStrategy
from tokenprune.tokens import Selection


def as_strategy(strategy: PruningStrategy | str) -> PruningStrategy:
    """The strategy itself, or the one that a text describes.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(strategy, str):
        return parse(strategy)
    if not isinstance(strategy, PruningStrategy):
        got = f"the class {strategy.__name__}" if isinstance(strategy, type) else type(strategy).__name__
        raise TypeError(
            f"prune: strategy must be a PruningStrategy or its text, got {got}; write for example GreedyRepMax(64)"
        )
    return strategy


def check_strategy_fits(strategy: PruningStrategy, adapter: Adapter) -> None:
    """Raise unless every stage acts where this family can be pruned, and gets the signals that it needs.

    Raises:
        UnsupportedError: naming the stage, and the site or signal.
    """
    family = type(adapter.model).__name__
    for stage in strategy.stages if isinstance(strategy, StagedStrategy) else (strategy,):
        if stage.site not in adapter.sites:
            raise UnsupportedError(
                f"prune: {stage!r} acts at the {stage.site!r} site, but {family} can be pruned at "
                f"{', '.join(map(repr, sorted(adapter.sites)))} only; choose a strategy of that site"
            )
        missing = sorted(stage.needs - adapter.signals)
        if missing:
            raise UnsupportedError(
                f"prune: {stage!r} needs Tokens.{missing[0]}, which {family} cannot supply "
                f"(it has {', '.join(sorted(adapter.signals))}); choose a strategy that does without it"
            )


def select_tokens(strategy: PruningStrategy, prompt: Prompt) -> tuple[list[Selection], float]:
    """Let the strategy choose among the tokens of every image of the prompt, all images in one call.

    Args:
        strategy: what decides.
        prompt: from `build_prompt`, with the signals that the strategy needs.

    Returns:
        One selection per image in placeholder order, and the seconds that the choice took; on a CUDA device both ends
        of the measurement wait for the device.
    """
    tokens = prompt.tokens()
    if not tokens:
        return [], 0.0
    device = prompt.embeds.device
    start = _now(device)
    selections = strategy.select_batch(tokens)
    return selections, _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
