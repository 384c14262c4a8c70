"""`prune`: the context in which an unmodified model prunes."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.clip import Clip
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families import adapter_for
from tokenprune.models.generation import generate_pruned
from tokenprune.models.inputs import PadIds, check_ids
from tokenprune.models.inside import Inside
from tokenprune.models.plan import Plan, make_plan
from tokenprune.models.prompt import is_placeholder
from tokenprune.models.pruning import prune_batch, raise_missing_pixels
from tokenprune.models.record import Record
from tokenprune.models.refuse import (
    cached_length,
    refuse_cache,
    refuse_columns,
    refuse_embeddings,
    refuse_generate,
    refuse_in_decoder,
    setting,
)
from tokenprune.models.select import as_strategy, check_strategy_fits
from tokenprune.strategy import PositionPolicy, PruningStrategy

_PROMPT_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")
_active: set[int] = set()
_active_lock = threading.Lock()


def prune(
    model: Any,  # noqa: ANN401
    strategy: PruningStrategy | str,
    *,
    positions: PositionPolicy | None = None,
    clip: Clip | None = None,
) -> AbstractContextManager[Record]:
    """While the context is open, the model drops the visual tokens that the strategy does not keep.

    The model is the unmodified Hugging Face object and is called as always: `model.generate(**inputs)` and
    `model(**inputs)`. Images are encoded once, tokens are chosen, and the model gets the shorter prompt through public
    arguments only. Stages that act inside the language model cut the running sequence at their layer, and the cache of
    every later layer is really shorter. On exit, also after an error, nothing is left on the model.

    * `generate` gives back sequences that start with the caller's prompt; `max_length` and `min_length` count it.
    * A plain forward gives back logits of the pruned length (behind the last stage); `record.calls[-1].columns` says
      which column stands where. Its `labels` are cut with the prompt; with a stage inside the decoder they are refused.
    * Text-only prompts pass unchanged.
    * Beams and return sequences of a prompt share one selection.
    * One model in one context at a time: nesting, or a second thread opening a context on the same model, is refused.
      Inside the context several threads may call the model; with a stage inside the decoder they take turns.
    * A cache that was filled with a pruned prompt must not be continued, inside or outside: it is shorter than the ids.

    Args:
        model: a supported transformers model.
        strategy: a strategy, or its text form such as "trim_tokenator(keep=64)".
        positions: "original" keeps the positions of the full prompt, "compact" renumbers; None takes what the method's
            authors do, for each stage its own.
        clip: a CLIP model beside the model, for strategies that need `Tokens.clip_visual` and `Tokens.clip_text`.

    Returns:
        A context manager that yields the `Record`.

    Raises:
        ValueError: when strategy and model do not fit, or (inside) for calls that cannot be pruned correctly.
        RuntimeError: when the model is being pruned already; inside or on exit, when visual tokens got past the
            pruning.
    """
    adapter = adapter_for(model)
    adapter.clip = clip
    strategy = as_strategy(strategy)
    check_strategy_fits(strategy, adapter)
    return _open(_Session(adapter, make_plan(strategy, positions)))


@contextmanager
def _open(session: "_Session") -> Iterator[Record]:
    with ExitStack() as stack:
        stack.enter_context(_claimed(session.adapter.base))
        session.install(stack)
        yield session.record
        session.check_installed("were removed while the context was open: calls since then were not pruned")


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


class _Session:
    """One open context: what it put on the model, and its record."""

    def __init__(self, adapter: Adapter, plan: Plan) -> None:
        self.adapter = adapter
        self.model: Any = adapter.model
        self.plan = plan
        self.record = Record(plan.strategy, plan.final_policy)
        self.plain_generate: Callable[..., Any] = self.model.generate
        self.generate_signature = inspect.signature(self.plain_generate)
        self.forward_signature = inspect.signature(self.model.forward)
        self.shadow = self.make_shadow()
        self.hooks: list[tuple[nn.Module, int]] = []
        # A plain number, which compiled decode steps can read. Calls with pixels are looked at whatever it says.
        self.generating = 0
        self.generating_lock = threading.Lock()
        self.local = threading.local()
        self.inside = Inside(adapter, plan, self.record) if plan.cuts else None

    # What stands on the model

    def install(self, stack: ExitStack) -> None:
        """Put `generate` and hooks on the model, and on decoder layers that need one; `stack` takes them away."""
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (self.model, self.on_forward),
            (self.adapter.vision_tower, self.on_tower),
        ]
        if self.inside is not None:
            stack.callback(self.inside.close)
            stack.callback(self.model.register_forward_hook(self.inside.after_forward, always_call=True).remove)
            hooks.extend(self.inside.hooks())
        for module, hook in hooks:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
            self.hooks.append((module, handle.id))
        attributes = vars(self.model)
        if "generate" in attributes:
            stack.callback(attributes.__setitem__, "generate", attributes["generate"])
        else:
            stack.callback(attributes.pop, "generate", None)
        attributes["generate"] = self.shadow
        self.check_installed("could not be put on the model")

    def check_installed(self, problem: str) -> None:
        """Raise unless everything that catches calls is in its place."""
        present = all(key in module._forward_pre_hooks for module, key in self.hooks)
        if not present or vars(self.model).get("generate") is not self.shadow:
            raise RuntimeError(f"prune: the hooks of this context {problem}")

    def on_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The witness: the vision tower runs for the pruning, or visual tokens are on their way past it."""
        if not getattr(self.local, "encoding", False):
            raise RuntimeError(
                "prune: the vision tower was called by something else than this context, so its visual tokens would "
                "not be pruned; call model.generate(...) or model(...) on the model given to prune, with input_ids and "
                "pixel_values, and do other work with the tower outside the context"
            )

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Tells the witness that the tower runs for us."""
        self.local.encoding = True
        try:
            yield
        finally:
            self.local.encoding = False

    # generate

    def make_shadow(self) -> Callable[..., Any]:
        """A function that looks like the model's `generate` (signature and documentation) and calls ours."""

        @functools.wraps(self.plain_generate)
        def generate(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return self.generate(*args, **kwargs)

        return generate

    def generate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stands in for `model.generate`."""
        call = _named(self.generate_signature, args, kwargs)
        if call.get("inputs") is not None and call.get("input_ids") is None:
            call["input_ids"] = call.pop("inputs")
        refuse_embeddings(call, what="generate")
        ids = check_ids(call)
        if call.get(self.adapter.modality_keys[0]) is None:
            self.check_plain(ids, call, "generate")
            self.record.add_plain("generate", (ids.shape[0], ids.shape[1]))
            with self.own_generate():
                return self.plain_generate(**call)
        refuse_generate(call, self.model)
        refuse_cache(call.get("past_key_values"), what="generate")
        prompt_keys = {*_PROMPT_KEYS, *self.adapter.modality_keys, *self.adapter.length_keys}
        refuse_columns(call, prompt_keys, (ids.shape[0], ids.shape[1]))
        rest = {name: value for name, value in call.items() if name not in prompt_keys and value is not None}
        if self.inside is not None:
            refuse_in_decoder(call, self.model, what="generate")
            rest["disable_compile"] = True  # the hooks on the layers keep books in Python
        with torch.no_grad():
            result = prune_batch(self.adapter, self.plan, call, pad=self.pad_ids(call), encoding=self.encoding())
        with ExitStack() as stack:
            run = None
            if self.inside is None:
                self.record.add("generate", result.prompt, result.pruned.columns, result.selections, result.seconds)
            else:
                run = self.inside.follow("generate", result, stack)
            with self.own_generate():
                output = generate_pruned(self.plain_generate, rest, result.pruned, self.model)
            if run is not None:
                run.check_finished()
            return output

    @contextmanager
    def own_generate(self) -> Iterator[None]:
        """While the model's own generate runs, the forwards that it makes are not looked at."""
        with self.generating_lock:
            self.generating += 1
        try:
            yield
        finally:
            with self.generating_lock:
                self.generating -= 1

    def pad_ids(self, call: dict[str, Any]) -> PadIds:
        """Padding and end ids of this call, by which `generate` infers a missing mask."""
        pad, end = (setting(name, call, self.model) for name in ("pad_token_id", "eos_token_id"))
        ends = end.tolist() if isinstance(end, Tensor) else end
        return pad, frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    # plain forward

    def on_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Stands before `model.forward`: prunes direct calls, lets the steps of `generate` through."""
        call = _named(self.forward_signature, args, kwargs) if args else kwargs
        if self.generating and call.get(self.adapter.modality_keys[0]) is None:
            return None
        refuse_embeddings(call, what="a forward")
        ids = check_ids(call)
        cache = call.get("past_key_values")
        if call.get(self.adapter.modality_keys[0]) is None:
            self.check_plain(ids, call, "forward")
            self.record.add_plain("forward", (ids.shape[0], ids.shape[1]))
            return None
        if cache is not None:
            # Also how generate calls forward when it was reached past the shadow: only the prefill would be pruned.
            raise UnsupportedError(
                "prune: a forward with both images and past_key_values is not supported; call model.generate, or leave "
                "past_key_values out and take the cache from the output"
            )
        prompt_keys = {*_PROMPT_KEYS, *self.adapter.modality_keys, *self.adapter.length_keys}
        refuse_columns(call, prompt_keys, (ids.shape[0], ids.shape[1]))
        if self.inside is not None:
            refuse_in_decoder(call, self.model, what="a forward")
        result = prune_batch(self.adapter, self.plan, call, forward=True, encoding=self.encoding())
        if self.inside is None:
            self.record.add("forward", result.prompt, result.pruned.columns, result.selections, result.seconds)
        else:
            self.inside.follow_forward(result)
        rest = {name: value for name, value in call.items() if name not in prompt_keys and value is not None}
        return (), {**rest, **result.pruned.as_inputs()}

    def check_plain(self, ids: Tensor, call: dict[str, Any], what: str) -> None:
        """Raise unless a call without pixels really has nothing to prune and no pruned cache under it."""
        if bool(is_placeholder(ids, self.adapter).any()):
            raise_missing_pixels(self.adapter)
        cache = call.get("past_key_values")
        if not self.record.images or not cached_length(cache):
            return
        mask, positions = call.get("attention_mask"), call.get("position_ids")
        fits = isinstance(mask, Tensor) and mask.shape[-1] == cached_length(cache) + ids.shape[1]
        if what == "generate" or self.plan.cuts or not fits or positions is None:
            refuse_cache(cache, what=f"a {what} without explicit position_ids and a mask over the pruned columns")


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name: a hook that looked at keywords only would miss what is passed by position."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(parameter.name, {}))
    return bound
