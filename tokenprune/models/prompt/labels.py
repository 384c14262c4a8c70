"""Labels of a sequence that gets shorter on its way through the model, and the loss that is made of them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

IGNORED = -100
"""Label of columns that do not count for the loss."""


def labels_at(labels: Int[Tensor, "b l"], columns: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """Cut labels to the kept columns.

    The models' loss compares the logits of each slot with the label of the next slot. So a label is predicted from the
    kept token before it: the first word after an image from the last token of that image, or, when none is
    left, from the word before it. The first token of a row has none before it and is ignored.

    Args:
        labels: of the columns of the dense prompt.
        columns: the column of the dense prompt in each slot, -1 on padding (on the left), another negative number for
            tokens that are no column.

    Examples:
        >>> import torch
        >>> labels_at(torch.tensor([[5, 6, 7, 8]]), torch.tensor([[-1, 0, 2, -2, 3]]))
        tensor([[-100, -100,    7, -100,    8]])
    """
    real = columns != -1
    first = real & (real.long().cumsum(1) == 1)  # (b, k)
    kept = labels.to(columns.device).gather(1, columns.clamp_min(0))
    return kept.masked_fill((columns < 0) | first, IGNORED)


@contextmanager
def cut_for_loss(model: nn.Module, labels: Callable[[], Tensor | None]) -> Iterator[list[bool]]:
    """While open, the model's loss function gets other labels than the model was called with.

    Models hand the labels of their call to `self.loss_function` behind their language model. Only there it is known
    which columns are left.

    Args:
        model: a transformers model; its loss function is put back at the end.
        labels: what to hand over; None leaves the labels as they are.

    Yields:
        A list with one entry as soon as labels have been handed over.
    """
    plain, own, fired = model.loss_function, vars(model), list[bool]()
    name = "_loss_function"  # what the property `loss_function` looks up first
    before = own.get(name)

    @functools.wraps(plain)  # type: ignore[arg-type]
    def loss(logits: Any, given: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        given = kwargs.pop("labels", given)
        cut = labels()
        if cut is not None:
            fired.append(True)
        return plain(logits, given if cut is None else cut, *args, **kwargs)  # type: ignore[operator]

    own[name] = loss
    try:
        yield fired
    finally:
        if before is None:
            own.pop(name, None)
        else:
            own[name] = before
