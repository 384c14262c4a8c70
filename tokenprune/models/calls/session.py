"""One open `prune` context: what it puts on the model, and what happens when the model is called."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenprune.core.signals import IMAGE_KEY
from tokenprune.models.calls.arguments import generate_signature, locked_on_error, named
from tokenprune.models.calls.batch import Choose, continue_batch, prune_batch, raise_missing_pixels
from tokenprune.models.calls.generate import generate_pruned
from tokenprune.models.calls.refuse import (
    refuse_cache,
    refuse_columns,
    refuse_continuing,
    refuse_embeddings,
    refuse_generate,
    refuse_in_decoder,
    refuse_packed,
    refuse_visual_labels,
    setting,
)
from tokenprune.models.decoder.attach import Inside
from tokenprune.models.decoder.inject import injected, placed
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.hooks import Installed
from tokenprune.models.no_copy import NoCopy, Shadow, refuse_copy
from tokenprune.models.plan import Plan
from tokenprune.models.prompt.cache_state import (
    INTERRUPTED,
    LAYERS_DIFFER,
    cached_length,
    lock,
    refuse_state,
    state_of,
    unlock,
)
from tokenprune.models.prompt.choose import choose_all
from tokenprune.models.prompt.dense import is_placeholder
from tokenprune.models.prompt.first_choice import FirstChoice, TurnPolicy
from tokenprune.models.prompt.inputs import PadIds, check_ids
from tokenprune.models.prompt.pruned import Pruned
from tokenprune.models.prompt.turns import CachedPrompt, cached_prompt
from tokenprune.models.record import CallKind, Record
from tokenprune.models.wrapped.compiled import outside_graphs, seen_by_graphs
from tokenprune.models.wrapped.unwrap import refuse_virtual_tokens

_PROMPT_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


class Expected(NamedTuple):
    """What `on_forward` found out about a plain forward that `model.forward` is about to compute."""

    pruned: Pruned | None
    """A pruned batch that must be followed into the language model."""
    cache: object = None
    """A cache with pruned columns that the forward continues."""


class Session(NoCopy):
    """One open context: what it put on the model, and its record.

    Nothing of a call outlives it, whatever ends it: a call of `generate` is followed within our own function of that
    name, and a plain forward within ours, which `model(...)` calls after the hooks. Only `Expected` lies between those
    two; an interruption there leaves it, and the thread's next call drops it.
    """

    def __init__(self, adapter: Adapter, plan: Plan, turns: TurnPolicy = "reselect") -> None:
        self.adapter = adapter
        self.model: Any = adapter.model
        self.plan = plan
        self.record = Record(plan.strategy, plan.final_policy)
        self.plain_generate: Callable[..., Any] = self.model.generate
        self.plain_forward: Callable[..., Any] = self.model.forward
        self.generate_signature = generate_signature(self.plain_generate)
        self.forward_signature = inspect.signature(self.model.forward)
        self.installed = Installed(self.model)
        self.is_open = False
        # In all threads. A plain number, which compiled decode steps can read.
        self.generating = 0
        self.generating_lock = threading.Lock()
        self.local = threading.local()
        self.inside = Inside(adapter, plan, self.record) if plan.cuts else None
        self.choose: Choose = FirstChoice() if turns == "freeze" else choose_all
        self.want = {IMAGE_KEY} if turns == "freeze" else set()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand on the model until the end; raises there when something took the hooks away meanwhile."""
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (self.model, self.on_forward),
            (self.adapter.vision_tower, self.on_tower),
        ]
        after: list[tuple[nn.Module, Callable[..., Any]]] = [(self.model, self.after_forward)]
        if self.inside is not None:
            hooks.extend(self.inside.hooks())
            after.extend(self.inside.hooks_behind())
        if "flash" in (self.adapter.decoder.config._attn_implementation or ""):
            # Behind the others, which count from these positions.
            hooks.extend((layer, self.on_flash_layer) for layer in self.adapter.decoder_layers)
        shadows = {
            **self.adapter.shadows(),
            "generate": Shadow(self.plain_generate, outside_graphs(self.generate)),
            "__reduce_ex__": refuse_copy,
        }
        with ExitStack() as stack:
            if self.inside is not None:
                stack.callback(self.inside.close)
            stack.enter_context(self.installed.standing(hooks, after, shadows, {"forward": self.make_forward()}))
            modules = [module for module, _ in (*hooks, *after)]
            stack.enter_context(seen_by_graphs(module for module in modules if module is not self.model))
            self.is_open = True
            stack.callback(setattr, self, "is_open", False)
            yield
            self.installed.check("were removed while the context was open: calls since then were not pruned")

    # What stands on the model

    @outside_graphs
    def on_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The witness: the vision tower runs for the pruning, or visual tokens are on their way past it."""
        if not getattr(self.local, "encoding", False):
            raise RuntimeError(
                "prune: the vision tower was called by something else than this context, so its visual tokens would "
                "not be pruned; call model.generate(...) or model(...) on the model given to prune, with input_ids and "
                "pixel_values, and do other work with the tower outside the context"
            )

    def on_flash_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keeps gaps in positions from FlashAttention, which would take one prompt for several packed ones.

        Attention gets its positions from the rotary embedding. With a cache that is not empty the packed path is wrong:
        it takes the lengths of the keys from the queries.
        """
        if not self.is_step() or kwargs.get("position_ids") is None:
            return None
        return args, {**kwargs, "position_ids": None}

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Tells the witness that the tower runs for us."""
        self.local.encoding = True
        try:
            yield
        finally:
            self.local.encoding = False

    # generate

    def generate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stands in for `model.generate`."""
        self.local.expected = None
        self.installed.check("were changed while the context was open")
        call = named(self.generate_signature, args, kwargs)
        if call.get("inputs") is not None and call.get("input_ids") is None:
            call["input_ids"] = call.pop("inputs")
        refuse_virtual_tokens(self.model)
        refuse_embeddings(call, what="generate")
        ids = check_ids(call)
        cache = call.get("past_key_values")
        state = state_of(cache)
        if state is None and not self.adapter.has_visual(call):
            self.check_plain(ids)
            self.record.add_plain("generate", (ids.shape[0], ids.shape[1]))
            with self.own_generate():
                return self.plain_generate(**call)
        refuse_generate(call, self.model)
        if state is None:
            refuse_cache(cache, what="generate")
        prompt_keys = {*_PROMPT_KEYS, *self.adapter.modality_keys, *self.adapter.length_keys}
        refuse_columns(call, prompt_keys, (ids.shape[0], ids.shape[1]))
        rest = {name: value for name, value in call.items() if name not in prompt_keys and value is not None}
        if self.inside is not None:
            refuse_in_decoder(call, self.model, self.adapter.decoder_layers, what="generate")
            rest["disable_compile"] = True  # the hooks on the layers keep books in Python
        with torch.no_grad():
            if state is None:
                result = self.prune_batch(call, self.pad_ids(call))
            else:
                known = refuse_continuing(state, call, self.plan, cached_length(cache))
                result = continue_batch(
                    self.adapter, self.plan, call, known, pad=self.pad_ids(call), encoding=self.encoding()
                )
        with ExitStack() as stack:
            run = None
            if self.inside is None:
                self.note("generate", result)
            else:
                run = self.inside.follow("generate", result, stack)
            unlock(cache)
            stack.enter_context(locked_on_error(cache))
            stack.enter_context(placed(self.adapter, result.pruned))
            stack.enter_context(injected(self.adapter, result.pruned))
            with self.own_generate():
                output = generate_pruned(self.plain_generate, rest, result.pruned, self.model)
            if run is not None:
                run.check_finished()
        self.note_cache(output, cache, result, call)
        return output

    def prune_batch(self, call: dict[str, Any], pad: PadIds = (None, frozenset()), *, forward: bool = False) -> Pruned:
        """`prune_batch` with this context's settings."""
        return prune_batch(
            self.adapter,
            self.plan,
            call,
            forward=forward,
            pad=pad,
            encoding=self.encoding(),
            want=self.want,
            choose=self.choose,
        )

    def note(self, kind: CallKind, result: Pruned) -> None:
        """Put a call into the record whose tokens were all chosen before the language model."""
        self.record.add(
            kind,
            result.prompt,
            result.pruned.columns,
            result.selections,
            result.seconds,
            cached=result.cached,
            frozen=result.frozen,
        )

    def note_cache(self, output: Any, cache: Any, result: Pruned, call: dict[str, Any]) -> None:  # noqa: ANN401
        """Say what the cache holds that the caller gave or gets."""
        given = cache if cache is not None else getattr(output, "past_key_values", None)
        if not hasattr(given, "update") or not cached_length(given):
            return
        state: CachedPrompt | str
        if self.inside is not None:
            state = LAYERS_DIFFER
        elif (setting("num_beams", call, self.model) or 1) != 1:
            state = "it was filled by a beam search, whose rows are no conversations"
        else:
            sequences = output if isinstance(output, Tensor) else output.sequences
            try:
                state = cached_prompt(result.prompt, result.pruned, sequences, cached_length(given), result.keys)
            except ValueError as error:
                state = str(error)
        lock(given, state)

    @contextmanager
    def own_generate(self) -> Iterator[None]:
        """While the model's own generate runs, the forwards that it makes in this thread are not looked at."""
        before = getattr(self.local, "generating", 0)
        with self.generating_lock:
            self.generating += 1
        self.local.generating = before + 1
        try:
            yield
        finally:
            self.local.generating = before
            with self.generating_lock:
                self.generating -= 1

    def is_step(self) -> bool:
        """Whether a forward is one of the model's own generate: of this thread's, where that can be asked."""
        if torch.compiler.is_compiling():
            return self.generating > 0
        return getattr(self.local, "generating", 0) > 0

    def pad_ids(self, call: dict[str, Any]) -> PadIds:
        """Padding and end ids of this call, by which `generate` infers a missing mask."""
        pad, end = (setting(name, call, self.model) for name in ("pad_token_id", "eos_token_id"))
        ends = end.tolist() if isinstance(end, Tensor) else end
        return pad, frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    # plain forward

    @outside_graphs
    def on_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Stands before `model.forward`: prunes direct calls, lets the steps of `generate` through."""
        if module is not self.model:
            raise RuntimeError(
                "prune: a copy of the model was called, with the hooks of the context that is open on the original; "
                "call the original, or make the copy outside the context (DataParallel makes copies in each call when "
                "it has several devices: give it one)"
            )
        call = named(self.forward_signature, args, kwargs) if args else kwargs
        if self.is_step() and not self.adapter.has_visual(call):
            return None
        self.local.expected = None
        self.installed.check("were changed while the context was open")
        refuse_embeddings(call, what="a forward")
        ids = check_ids(call)
        cache = call.get("past_key_values")
        if not self.adapter.has_visual(call):
            self.check_plain(ids)
            if self.check_step(ids, call):
                self.local.expected = Expected(None, cache)
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
            refuse_in_decoder(call, self.model, self.adapter.decoder_layers, what="a forward")
        refuse_packed(call)
        if call.get("num_items_in_batch") is not None:
            refuse_visual_labels(call, is_placeholder(ids, self.adapter))
        result = self.prune_batch(call, forward=True)
        if self.inside is None:
            self.note("forward", result)
        followed = self.inside is not None or result.pruned.deepstack is not None
        self.local.expected = Expected(result if followed else None)  # else the prompts before pruning can be freed
        rest = {name: value for name, value in call.items() if name not in prompt_keys and value is not None}
        return (), {**rest, **result.pruned.as_inputs()}

    def make_forward(self) -> Callable[..., Any]:
        """A function that looks like the model's `forward`, and follows what `on_forward` expects."""

        @functools.wraps(self.plain_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            # Compiled steps of `generate` cannot read what belongs to a thread; they never have embeddings.
            if torch.compiler.is_compiling() and kwargs.get("inputs_embeds") is None:
                return self.plain_forward(*args, **kwargs)
            return self.follow_forward(args, kwargs)

        return forward

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def follow_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Stands in for `model.forward`, after the hooks. The model's own forward may be compiled; the rest is not."""
        following: ExitStack | None = None
        try:
            following = self.begin_following(kwargs)
            output = self.plain_forward(*args, **kwargs)
        except BaseException as error:
            if following is not None:
                _end(following, error)
            raise
        _end(following, None)
        return output

    @outside_graphs
    def begin_following(self, kwargs: dict[str, Any]) -> ExitStack:
        """Make ready for the forward that `on_forward` has announced in this thread; the answer is closed after it."""
        expected: Expected | None = getattr(self.local, "expected", None)
        self.local.expected = None
        with ExitStack() as stack:
            if expected is None:
                if self.is_open and not self.is_step() and kwargs.get("inputs_embeds") is not None:
                    raise RuntimeError(
                        "prune: model.forward got a prompt as embeddings that did not come through the context's hook; "
                        "call model(...), and call it from no hook on the model itself"
                    )
                return stack.pop_all()
            stack.enter_context(locked_on_error(expected.cache))
            if expected.pruned is not None:
                stack.enter_context(injected(self.adapter, expected.pruned.pruned))
                if self.inside is not None:
                    stack.enter_context(self.inside.follow_forward(expected.pruned))
            return stack.pop_all()

    @outside_graphs
    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        """Called after `model.forward`: raises when that went past ours, so that nobody followed the pruned prompt."""
        if getattr(self.local, "expected", None) is None:
            return
        self.local.expected = None
        raise RuntimeError(
            "prune: model.forward was replaced while the context was open, by something that does not call the one "
            "that was there; replace it before the context is opened"
        )

    def check_plain(self, ids: Tensor) -> None:
        """Raise unless a call without pixels really has nothing to prune."""
        if bool(is_placeholder(ids, self.adapter).any()):
            raise_missing_pixels(self.adapter)

    def check_step(self, ids: Tensor, call: dict[str, Any]) -> bool:
        """Whether a forward continues a cache from a pruned prompt; raises unless it says where it is there."""
        cache = call.get("past_key_values")
        state = state_of(cache)
        if not cached_length(cache) or (state is None and not self.record.images):
            return False
        if isinstance(state, str) and state in (LAYERS_DIFFER, INTERRUPTED):
            refuse_state(state)
        mask, positions = call.get("attention_mask"), call.get("position_ids")
        fits = isinstance(mask, Tensor) and mask.shape[-1] == cached_length(cache) + ids.shape[1]
        if self.plan.cuts or not fits or positions is None:
            refuse_cache(cache, what="a forward without explicit position_ids and a mask over the pruned columns")
        unlock(cache)  # from here on the caller keeps the books
        return True


@outside_graphs
def _end(following: ExitStack, error: BaseException | None) -> None:
    """Close what belongs to a forward, with the error that ended it."""
    following.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)
