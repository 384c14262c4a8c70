"""What a `prune` context does inside the decoder: hooks on its layers, and which run they serve."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tokenprune.models.decoder.run import DecoderRun
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.no_copy import NoCopy
from tokenprune.models.plan import Plan
from tokenprune.models.prompt.labels import cut_for_loss
from tokenprune.models.prompt.pruned import Pruned
from tokenprune.models.record import CallKind, Record
from tokenprune.models.wrapped.checkpointing import arranged_outside, not_checkpointed
from tokenprune.models.wrapped.compiled import outside_graphs


class Inside(NoCopy):
    """The part of an open context that follows prompts into the language model.

    Calls take turns: while one is followed, it has the decoder to itself. Each is followed within a `with` block, so
    that an interruption ends its turn, too.
    """

    def __init__(self, adapter: Adapter, plan: Plan, record: Record) -> None:
        self.adapter = adapter
        self.plan = plan
        self.record = record
        self.turn = threading.RLock()
        self.local = threading.local()
        self.open: set[DecoderRun] = set()

    def hooks(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Forward pre-hooks for the layer before the first cut and all that follow, and for cuts within a layer."""
        first = self.plan.cuts[0].layer - 1
        layers = list(enumerate(self.adapter.decoder_layers))[first:]
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (layer, functools.partial(self.on_layer, number)) for number, layer in layers
        ]
        return [*hooks, *((part, functools.partial(self.on_ffn, number)) for number, part in self._cut_within())]

    def hooks_behind(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Forward hooks for cuts within a layer."""
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (part, functools.partial(self.behind_ffn, number)) for number, part in self._cut_within()
        ]
        if self.plan.cuts[-1].layer == len(self.adapter.decoder_layers):
            hooks.append((self.adapter.decoder_layers[-1], self.behind_layers))
        return hooks

    def _cut_within(self) -> list[tuple[int, nn.Module]]:
        """Layers that are cut between attention and feed-forward, and the module of the latter."""
        layers: list[Any] = list(self.adapter.decoder_layers)
        return [(cut.layer - 1, layers[cut.layer - 1].mlp) for cut in self.plan.cuts if cut.before_ffn]

    @outside_graphs
    def on_ffn(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Cut before the feed-forward part of decoder layer `number`. No keywords: for other threads, see `hooked`."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        changed = None if run is None or kwargs is None else run.before_ffn(number, args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)

    @outside_graphs
    def behind_ffn(self, number: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Stands behind it."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        return None if run is None else run.behind_ffn(number, output)

    @outside_graphs
    def behind_layers(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Stands behind the last decoder layer."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        return None if run is None else run.behind_layers(output)

    @outside_graphs
    def on_layer(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Act before decoder layer `number`. No keywords: for other threads, see `hooked`."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        if run is None or kwargs is None or getattr(self.local, "within", False):
            return None
        self.local.served = number
        return run.before_layer(number, args, kwargs)

    def follow(self, kind: CallKind, result: Pruned, stack: ExitStack) -> DecoderRun:
        """The prompt is about to enter the language model: follow it until `stack` closes."""
        stack.enter_context(self.turn)
        run = DecoderRun(self.adapter, self.plan, result, functools.partial(self.note, kind))
        stack.callback(setattr, self.local, "run", getattr(self.local, "run", None))
        stack.callback(self.open.discard, run)
        stack.callback(run.close)
        self.open.add(run)
        self.local.run = run
        self._around_checkpoints(run, stack)
        return run

    def _around_checkpoints(self, run: DecoderRun, stack: ExitStack) -> None:
        """Keep what is computed again in the backward pass free of this context, which is not around then."""
        self.local.served = None
        layers = list(self.adapter.decoder_layers)
        cut_within = {number for number, _ in self._cut_within()} | {
            cut.layer - 1 for cut in self.plan.cuts if cut.layer == len(layers)
        }
        stack.enter_context(not_checkpointed(layers[number] for number in cut_within))
        for number, layer in list(enumerate(layers))[run.first :]:
            arrange = functools.partial(self._arrange, run, number)
            stack.enter_context(arranged_outside(layer, arrange, self._within))

    def _arrange(
        self, run: DecoderRun, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of a checkpointed layer, unless its hook has made them already."""
        served, self.local.served = self.local.served, None
        return None if served == number else run.before_layer(number, args, kwargs)

    @contextmanager
    def _within(self) -> Iterator[None]:
        """While open, hooks on layers know that the arguments are made."""
        self.local.within = True
        try:
            yield
        finally:
            self.local.within = False

    @contextmanager
    def follow_forward(self, result: Pruned) -> Iterator[None]:
        """The same for a plain forward, which is computed within.

        Raises:
            RuntimeError: at the end, when a stage did not fire.
        """
        with ExitStack() as stack:
            run = self.follow("forward", result, stack)
            loss: list[bool] | None = None
            if result.pruned.labels is not None:
                loss = stack.enter_context(cut_for_loss(self.adapter.model, self._labels))
            yield
            run.check_finished()
            self._check_loss(loss)

    def _labels(self) -> Tensor | None:
        """Labels for the logits of this thread's forward; None in a thread whose forward nobody follows."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        return None if run is None else run.labels()

    def _check_loss(self, cut: list[bool] | None) -> None:
        """Raise when labels were given (then `cut` is a list) and no loss was made of those of the kept columns."""
        if cut is not None and not cut:
            raise RuntimeError(
                f"prune: {type(self.adapter.model).__name__} did not hand its labels to `loss_function`, so its loss "
                "is not that of the columns that are left; leave labels out and make the loss from the logits through "
                "record.calls[-1].cut_labels(labels)"
            )

    def close(self) -> None:
        """Take away whatever is still open, in other threads too."""
        for run in list(self.open):
            run.close()

    def note(self, kind: CallKind, run: DecoderRun) -> None:
        """Put into the record what a run chose."""
        counts = [tuple(entering) for entering in run.counts]
        self.record.add(kind, run.before.prompt, run.layout.columns, run.selections(), run.seconds, counts)


@contextmanager
def cut_inside(adapter: Adapter, plan: Plan, before: Pruned) -> Iterator[DecoderRun]:
    """The decoder's part of a plan for callers who prepare prompts themselves; one `generate` with `before` inside.

    Call it with `disable_compile=True`. Afterwards the run says what is left (`selections`), how many tokens entered
    each layer (`counts`) and how long choosing took (`seconds`).

    Args:
        adapter: the model's adapter.
        plan: with at least one cut.
        before: the prompt as it enters the language model, padded on the left.

    Raises:
        RuntimeError: at the end, when a stage did not fire.
    """
    inside = Inside(adapter, plan, Record(plan.strategy, plan.final_policy))
    with ExitStack() as stack:
        for module, hook in inside.hooks():
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for module, hook in inside.hooks_behind():
            stack.callback(module.register_forward_hook(hook).remove)
        run = inside.follow("generate", before, stack)
        yield run
        run.check_finished()
