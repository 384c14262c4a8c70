"""`prune`: the context in which an unmodified model prunes."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from tokenprune.core.fields import check_choice
from tokenprune.core.places import Positions
from tokenprune.core.strategy import PruningStrategy
from tokenprune.models.calls.session import Session
from tokenprune.models.encode.clip import Clip
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.families.registry import adapter_for
from tokenprune.models.plan import Plan, make_plan
from tokenprune.models.prompt.choose import as_strategy, fit_strategy
from tokenprune.models.prompt.first_choice import TurnPolicy
from tokenprune.models.record import Record


class NotEnteredWarning(UserWarning):
    """A `prune` context went away that nobody entered: the model ran without pruning, or not at all."""


_active: set[int] = set()
_active_lock = threading.Lock()


def prune(
    model: Any,  # noqa: ANN401
    strategy: PruningStrategy | str,
    *,
    positions: Positions | None = None,
    clip: Clip | None = None,
    turns: TurnPolicy = "reselect",
) -> AbstractContextManager[Record]:
    """While the context is open, the model drops the visual tokens that the strategy does not keep.

    The model is the unmodified Hugging Face object and is called as always: `model.generate(**inputs)` and
    `model(**inputs)`. Images are encoded once, tokens are chosen, and the model gets the shorter prompt through public
    arguments only. Stages that act inside the language model cut the running sequence at their layer, and the cache of
    every later layer is really shorter. On exit, also after an error, nothing is left on the model.

    * `generate` gives back sequences that start with the caller's prompt; `max_length` and `min_length` count it.
    * A plain forward gives back logits of the pruned length (behind the last stage); `record.calls[-1].columns` says
      which column stands where. Its `labels` are cut to these columns. Gradients flow through kept and merged tokens.
    * Text-only prompts pass unchanged.
    * An `attention_mask` that hides visual tokens is refused: budgets, rasters and scores are those of whole images.
    * Beams and return sequences of a prompt share one selection.
    * One model in one context at a time: nesting, or a second thread opening a context on the same model, is refused,
      and so is opening one context twice. Inside the context several threads may call the model; with a stage inside
      the decoder or merging in the vision tower they take turns. Contexts on different models do not touch each other.
    * A call that ends in an error or an interruption leaves nothing behind that a later call could meet.
    * Copying, pickling or saving the whole model inside the context is refused; its `state_dict` can be saved.
    * Conversations: `generate` with the whole conversation and the `past_key_values` of its last turn feeds what is new
      and keeps what was chosen before; the cache knows what it holds, also in a later context. Outside of a context a
      pruned cache refuses to be continued. Without a cache the conversation is encoded as a whole, see `turns`.

    Args:
        model: a supported transformers model, or one inside a wrapper (peft, `torch.compile`,
            `DistributedDataParallel`, see `unwrap`): calls of both are pruned.
        strategy: a strategy, or its text form such as "trim_tokenator(keep=64)".
        positions: "original" keeps the positions of the full prompt, "compact" closes the gaps, by the rule that
            `tokenprune.models.prompt.places` states; None takes what the method's authors do, for each stage its own.
        clip: a CLIP model beside the model, for strategies that need `Tokens.clip_visual` and `Tokens.clip_text`.
        turns: for conversations that are encoded as a whole in every turn: "reselect" chooses anew for each prompt, so
            that methods which read the question can follow it; "freeze" keeps the tokens that were chosen for an image
            in the first turn of its conversation (the prompt that begins with the same tokens and the same images).

    Returns:
        A context manager that yields the `Record`. Without `with` it does nothing; when one goes away that was never
        entered, there is a `NotEnteredWarning`.

    Raises:
        ValueError: when strategy and model do not fit, or (inside) for calls that cannot be pruned correctly.
        RuntimeError: when the model is being pruned already; inside or on exit, when visual tokens got past the
            pruning; inside, when the model is copied.
    """
    adapter = adapter_for(model)
    adapter.clip = clip
    strategy = fit_strategy(as_strategy(strategy), adapter)
    check_choice("prune", "turns", turns, ("reselect", "freeze"))
    plan = make_plan(strategy, positions)
    if turns == "freeze" and plan.cuts:
        raise UnsupportedError(
            f"prune: turns='freeze' cannot hold what {plan.cuts[0].stages[0]!r} chooses inside the language model, "
            "where the states that it looks at change with every turn; use turns='reselect'"
        )
    return _Context(adapter, plan, turns)


class _Context(AbstractContextManager[Record]):
    """What `prune` returns: opens a session on the model, once."""

    def __init__(self, adapter: Adapter, plan: Plan, turns: TurnPolicy) -> None:
        self._opening: tuple[Adapter, Plan, TurnPolicy] | None = (adapter, plan, turns)
        self._stack = ExitStack()
        self._forgotten = True

    def __del__(self) -> None:
        # Where it was called as a statement, the line that is named is that one.
        if getattr(self, "_forgotten", False):
            warnings.warn(
                "prune: this context was never entered, so nothing was pruned; write `with tokenprune.prune(model, "
                "strategy) as record:` and call the model inside",
                NotEnteredWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Record:
        self._forgotten = False  # also when it cannot be opened: that is an error of its own
        if self._opening is None:
            raise RuntimeError("prune: a context can be opened once; call prune(model, strategy) again")
        adapter, plan, turns = self._opening
        with ExitStack() as stack:
            stack.enter_context(_claimed(adapter.base))
            session = Session(adapter, plan, turns)
            stack.enter_context(session.open())
            self._stack = stack.pop_all()
        self._opening = None
        return session.record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)


def is_pruned(module: nn.Module) -> bool:
    """Tell whether a context is open on a model, in any thread.

    Args:
        module: the model without its output head, `Adapter.base`.
    """
    with _active_lock:
        return id(module) in _active


@contextmanager
def _claimed(module: nn.Module) -> Iterator[None]:
    with _active_lock:
        if id(module) in _active:
            raise RuntimeError(
                "prune: this model is being pruned already, here or in another thread; leave that context first, or "
                "combine strategies with >>"
            )
        _active.add(id(module))
    try:
        yield
    finally:
        with _active_lock:
            _active.discard(id(module))
