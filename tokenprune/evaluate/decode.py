"""Greedy answers, with the time to the first token apart from the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from tokenprune.models.clock import now


class FirstToken(StoppingCriteria):
    """Never stops; notes when the first token of a `generate` call has been chosen.

    `generate` asks its stopping criteria after every token, so the first call comes after exactly one forward pass over
    the prompt and one choice: the time to the first token, measured inside the very run that gives the answer.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Note the time of the first call."""
        if self.at is None:
            self.at = now(self.device)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` gave, and when.

    Attributes:
        sequences: int64 (b, l), prompt and answer.
        prefill: seconds from the call to the first token.
        decode: seconds from the first token to the end.
        cache: keys and values as they were at the end.
    """

    sequences: Tensor
    prefill: float
    decode: float
    cache: Any


def generate_timed(model: Any, inputs: Mapping[str, Any], *, max_new_tokens: int, device: torch.device) -> Generated:  # noqa: ANN401
    """Generate greedily and time prefill and decode.

    Args:
        model: a Hugging Face model with `generate`.
        inputs: arguments of `generate`.
        max_new_tokens: length limit of the answer; an end token ends it sooner.
        device: where the model is, for synchronisation.
    """
    clock = FirstToken(device)
    start = now(device)
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        stopping_criteria=StoppingCriteriaList([clock]),
        return_dict_in_generate=True,
    )
    end = now(device)
    first = end if clock.at is None else clock.at
    return Generated(
        sequences=output.sequences, prefill=first - start, decode=end - first, cache=output.past_key_values
    )


def answer_lengths(tokens: Tensor, end_ids: frozenset[int]) -> list[int]:
    """Generated tokens per row, the end token included and padding after it not.

    Examples:
        >>> answer_lengths(torch.tensor([[5, 2, 0], [5, 6, 7]]), frozenset({2}))
        [2, 3]
    """
    lengths = []
    for row in tokens.tolist():
        ends = [i for i, token in enumerate(row) if token in end_ids]
        lengths.append(ends[0] + 1 if ends else len(row))
    return lengths
