"""The policy "freeze" for conversations that are encoded as a whole in every turn."""

import threading
from typing import Literal

import torch

from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt.choose import Chosen, select_tokens
from tokenprune.models.prompt.dense import Prompt

TurnPolicy = Literal["reselect", "freeze"]
_Choice = list[tuple[int | None, Selection]]


class FirstChoice:
    """`select_tokens` with a memory: an image keeps the tokens that were chosen in its conversation's first turn.

    A prompt goes on with an earlier one when it begins with the same tokens, all of them, and with the same images.
    Images that are new in a later turn are chosen from then, and frozen from then on. For every prompt seen its ids and
    selections are held.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, _Choice] = {}
        self._lengths: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, strategy: PruningStrategy | None, prompt: Prompt) -> Chosen:
        """Choose for the images that no earlier prompt has."""
        keys = prompt.vision.keys if prompt.vision is not None else None
        ids, mask = prompt.ids.cpu(), prompt.mask.cpu()
        rows = [ids[row][mask[row]] for row in range(ids.shape[0])]
        with self._lock:
            frozen = [self._earlier(row) for row in rows]
            chosen: dict[int, Selection] = {}
            for i, segment in enumerate(prompt.segments):
                before = frozen[segment.row]
                if segment.image < len(before) and (keys is None or before[segment.image][0] == keys[i]):
                    chosen[i] = before[segment.image][1]
                    _refuse_training(strategy, prompt, chosen[i])
            new = [i for i in range(len(prompt.segments)) if i not in chosen]
            selections, seconds = select_tokens(strategy, prompt, only=new)
            chosen.update(zip(new, selections, strict=True))
            for number, row in enumerate(rows):
                self._lengths.add(len(row))
                self._known[_key(row)] = [
                    (None if keys is None else keys[i], chosen[i].detached())
                    for i, segment in enumerate(prompt.segments)
                    if segment.row == number
                ]
        count = len(prompt.segments)
        return Chosen([chosen[i] for i in range(count)], seconds, tuple(i not in new for i in range(count)))

    def _earlier(self, row: torch.Tensor) -> _Choice:
        for length in sorted((n for n in self._lengths if n <= len(row)), reverse=True):
            found = self._known.get(_key(row[:length]))
            if found is not None:
                return found
        return []


def _refuse_training(strategy: PruningStrategy | None, prompt: Prompt, selection: Selection) -> None:
    """New tokens of an earlier call are numbers made with the weights of then."""
    learning = torch.is_grad_enabled() and prompt.vision is not None and prompt.vision.features.requires_grad
    if learning and selection.features is not None:
        raise UnsupportedError(
            f"prune: turns='freeze' would use the tokens again that {strategy!r} made in an earlier call, through "
            "which no gradient flows; train with turns='reselect', or wrap the call in torch.no_grad() when you do "
            "not train"
        )


def _key(row: torch.Tensor) -> bytes:
    return row.numpy().tobytes()
