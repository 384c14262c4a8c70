"""What is checked of a stage's answers; each error names the strategy and the part."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenprune.core.checks import Yields
from tokenprune.core.selection import Choice, StageCount
from tokenprune.core.tokens import Tokens
from tokenprune.core.validity import show
from tokenprune.kernels.finite import all_finite, rough_sum

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NotFiniteError(ValueError, RuntimeError):
    """A method made token vectors that hold NaN or infinity.

    Either the numbers that it got are too large for its arithmetic, which is a matter of the input (a ValueError), or
    the method is wrong (a RuntimeError); nobody can tell from outside.
    """


def check_answers(
    owner: str,
    yields: Yields,
    batch: Sequence[Tokens],
    choices: object,
    requested: Sequence[int | None],
    *,
    ascending: bool,
) -> list[Choice]:
    """Return a stage's answers for several images, or raise what is wrong with them.

    Args:
        owner: the stage's class.
        yields: what it says that it leaves.
        batch: the images.
        choices: its answers.
        requested: per image the number asked for; None where the stage finds it itself.
        ascending: whether indices must ascend.

    Raises:
        RuntimeError: naming the owner and the part that is wrong.
        NotFiniteError: when a vector that was made holds NaN or infinity.
    """
    if not isinstance(choices, list | tuple):
        raise RuntimeError(f"{owner}: choose_batch must return a list of Choice, got {type(choices).__name__}")
    if len(choices) != len(batch):
        raise RuntimeError(f"{owner}: answered {len(choices)} times for {len(batch)} images")
    for tokens, choice, wanted in zip(batch, choices, requested, strict=True):
        if not isinstance(choice, Choice):
            raise RuntimeError(
                f"{owner}: must answer a Choice, got {type(choice).__name__}; write Choice.top(scores, count)"
            )
        check_form(owner, tokens, choice)
        _check_size(owner, yields, tokens, choice, wanted)
    _check_values(owner, batch, choices, ascending=ascending)
    return list(choices)


def check_form(owner: str, tokens: Tokens, choice: Choice) -> None:
    """Raise unless all parts of an answer have the kind, shape, dtype and device that they must have.

    Nothing is read from the device.

    Raises:
        RuntimeError: naming the owner and the part.
    """
    device = tokens.visual.device
    indices = _dense(owner, "indices", choice.indices)
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise RuntimeError(f"{owner}: indices must be int64 (k,), got {show(indices)}")
    if indices.device != device:
        raise RuntimeError(f"{owner}: indices are on {indices.device}, the tokens on {device}")
    k, width = indices.shape[0], tokens.visual.shape[1]
    if choice.order is not None:
        order = _dense(owner, "order", choice.order)
        if order.dtype != torch.int64 or order.shape != (k,) or order.device != device:
            raise RuntimeError(
                f"{owner}: order must be int64 ({k},) on {device}, the rows of indices in the order of the picks, got "
                f"{show(order)} on {order.device}"
            )
    for name, length in (("scores", tokens.n), ("sizes", k)):
        if getattr(choice, name) is not None:
            value = _dense(owner, name, getattr(choice, name))
            if value.dtype not in _FLOATS or value.shape != (length,) or value.device != device:
                raise RuntimeError(
                    f"{owner}: {name} must be floating point ({length},) on {device}, got {show(value)} on "
                    f"{value.device}"
                )
    for name in ("features", "extra"):
        if getattr(choice, name) is not None:
            made = _dense(owner, name, getattr(choice, name))
            wanted = (k if name == "features" else made.shape[0] if made.ndim else 0, width)
            if made.shape != wanted or made.dtype != tokens.visual.dtype or made.device != device:
                raise RuntimeError(
                    f"{owner}: {name} must be {tokens.visual.dtype} {wanted} on {device}, got {show(made)} on "
                    f"{made.device}"
                )
            if made.requires_grad and not tokens.attached:
                raise RuntimeError(
                    f"{owner}: {name} carry a gradient, but nothing in the tokens does; detach what is learned"
                )
    stages = getattr(choice, "stages", ())
    if not isinstance(stages, tuple) or any(not isinstance(stage, StageCount) for stage in stages):
        raise RuntimeError(f"{owner}: stages must be a tuple of StageCount, got {stages!r}")


def _check_size(owner: str, yields: Yields, tokens: Tokens, choice: Choice, requested: int | None) -> None:
    k = choice.indices.shape[0]
    if (k == 0) != (yields == "nothing") or (requested is not None and k != min(requested, tokens.n)):
        raise RuntimeError(f"{owner}: kept {k} of {tokens.n} tokens, but {requested} were asked for")
    for name, made, wanted in (
        ("features", choice.features, yields == "merged"),
        ("extra", choice.extra, yields == "extended"),
    ):
        if wanted != (made is not None):
            raise RuntimeError(f"{owner}: yields {yields!r} but {name} are {'missing' if made is None else 'given'}")


def _check_values(owner: str, batch: Sequence[Tokens], choices: Sequence[Choice], *, ascending: bool) -> None:
    """Check numbers, with one transfer for the whole batch.

    Indices are rows, unique, and in order where promised; `order` holds the same rows; what was made is finite.
    """
    groups: dict[tuple[int, int, torch.device, bool], list[int]] = {}
    made: list[Tensor] = []
    right = True
    for i, (tokens, choice) in enumerate(zip(batch, choices, strict=True)):
        made += [x for x in (choice.features, choice.extra) if x is not None and x is not tokens.visual]
        k = choice.indices.shape[0]
        if on_host(choice):
            right = right and rows_hold(choice, tokens.n, ascending=ascending)
        elif k:  # a stage that yields nothing keeps none
            groups.setdefault((tokens.n, k, choice.indices.device, choice.order is not None), []).append(i)
    verdicts = [rough_sum(x).isfinite() for x in made]
    for (n, _, _, ordered), members in groups.items():
        rows = torch.stack([choices[i].indices for i in members])  # (images, k)
        rows = rows if ascending else rows.sort(dim=1).values
        good = (rows[:, 0] >= 0) & (rows[:, -1] < n) & (rows[:, 1:] > rows[:, :-1]).all(1)
        verdicts.append(good.all())
        if ordered:
            picks = torch.stack([order for i in members if (order := choices[i].order) is not None])  # (images, k)
            verdicts.append((picks.sort(dim=1).values == rows).all())
    if verdicts and right:
        right = bool(torch.stack([good.to(verdicts[0].device) for good in verdicts]).all().item())
    if not right:
        _explain(owner, batch, choices, made, ascending=ascending)


def on_host(choice: Choice) -> bool:
    """Tell whether the numbers of a choice can be read without waiting for a device."""
    return choice.indices.is_cpu


def rows_hold(choice: Choice, n: int, *, ascending: bool) -> bool:
    """Tell whether the indices of a choice on the CPU are unique rows below n, in order, and `order` holds the same.

    Args:
        choice: an answer that passed `check_form`.
        n: number of tokens chosen from.
        ascending: whether the indices must ascend.
    """
    if not choice.indices.shape[0]:  # a stage that yields nothing
        return True
    # NumPy: for so few numbers each call into torch costs more than the work.
    rows = choice.indices.numpy()
    rows = rows if ascending else np.sort(rows)
    if rows[0] < 0 or rows[-1] >= n or not (rows[1:] > rows[:-1]).all():
        return False
    return choice.order is None or bool((np.sort(choice.order.numpy()) == rows).all())


def _explain(
    owner: str, batch: Sequence[Tokens], choices: Sequence[Choice], made: list[Tensor], *, ascending: bool
) -> None:
    """Raise what is wrong with these answers; nothing when only a sum of large finite numbers was not finite."""
    what = "ascending, unique and" if ascending else "unique and"
    for tokens, choice in zip(batch, choices, strict=True):
        kept = choice.indices.tolist()
        right = sorted(set(kept)) == (kept if ascending else sorted(kept))
        if not right or (kept and (min(kept) < 0 or max(kept) >= tokens.n)):
            raise RuntimeError(f"{owner}: indices must be {what} in [0, {tokens.n}), got {kept[:12]}")
        if choice.order is not None and sorted(choice.order.tolist()) != sorted(kept):
            raise RuntimeError(
                f"{owner}: order must hold the rows of indices, each once, got {choice.order.tolist()[:12]} for "
                f"{kept[:12]}"
            )
    if not all(all_finite(made)):
        raise NotFiniteError(
            f"{owner}: the token vectors that it made hold NaN or infinity, though all numbers that it got are finite; "
            "they are too large to be added up in their dtype, so scale the model's features down or run it in a dtype "
            "of a larger range (bfloat16 or float32 for float16)"
        )


def _dense(owner: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise RuntimeError(f"{owner}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided:
        raise RuntimeError(f"{owner}: {name} must be a dense tensor, got the layout {value.layout}; use .to_dense()")
    return value
