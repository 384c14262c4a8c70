"""Calling a method: in full precision, and with a gradient only where it makes tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenprune.core.selection import Choice
from tokenprune.core.signals import PROJECT
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.precision import in_autocast, with_autocast_of_now, without_autocast

Choose = Callable[[Sequence[Tokens]], Any]


def answers(choose: Choose, batch: Sequence[Tokens], *, makes: bool) -> Any:  # noqa: ANN401
    """Let a method choose in full precision: `torch.autocast` would round the scores that decide.

    Args:
        choose: the method.
        batch: the images.
        makes: True when the method makes tokens through which a gradient flows.
    """
    if not batch or not in_autocast(batch[0].visual.device):
        return _with_gradient(choose, batch, makes=makes)
    device = batch[0].visual.device
    given = [
        # The projector is a part of the model and runs as the model does.
        tokens.changed({PROJECT: with_autocast_of_now(tokens[PROJECT], device)}) if tokens.knows(PROJECT) else tokens
        for tokens in batch
    ]
    with without_autocast(device):
        return _with_gradient(choose, given, makes=makes)


def _with_gradient(choose: Choose, batch: Sequence[Tokens], *, makes: bool) -> Any:  # noqa: ANN401
    """Connect only the values of new tokens to the model that the tokens come from.

    Choosing is no differentiable step, so a method that only chooses gets plain numbers. Where a method makes tokens,
    what it computes from attached signals is recorded, and its integer choices are constants by nature.
    """
    if makes and torch.is_grad_enabled() and any(tokens.attached for tokens in batch):
        return _plain_notes(choose(batch))
    with torch.no_grad():
        return choose([tokens.detached() for tokens in batch])


def _plain_notes(choices: Any) -> Any:  # noqa: ANN401
    """The answers with nothing but made tokens attached; what is no answer is left for the checks."""
    if not isinstance(choices, list | tuple):
        return choices
    return [choice.detached(notes_only=True) if isinstance(choice, Choice) else choice for choice in choices]
