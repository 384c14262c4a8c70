"""What a `prune` context does inside the decoder: hooks on its layers, and which run they serve."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tokenprune.models.adapter import Adapter
from tokenprune.models.compiled import outside_graphs
from tokenprune.models.decoder import DecoderRun
from tokenprune.models.plan import Plan
from tokenprune.models.pruning import Pruned
from tokenprune.models.record import CallKind, Record


class Inside:
    """The part of an open context that follows prompts into the language model.

    Calls take turns: while one is followed, it has the decoder to itself.
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
    def on_ffn(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Stands before the feed-forward part of decoder layer `number`."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        changed = None if run is None else run.before_ffn(number, args[0])
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
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Stands before decoder layer `number`."""
        run: DecoderRun | None = getattr(self.local, "run", None)
        return None if run is None else run.before_layer(number, args, kwargs)

    def follow(self, kind: CallKind, result: Pruned, stack: ExitStack) -> DecoderRun:
        """The prompt is about to enter the language model: follow it until `stack` closes."""
        stack.enter_context(self.turn)
        run = DecoderRun(self.adapter, self.plan, result, functools.partial(self.note, kind))
        stack.callback(setattr, self.local, "run", getattr(self.local, "run", None))
        stack.callback(self.open.discard, run)
        stack.callback(run.close)
        self.open.add(run)
        self.local.run = run
        return run

    def follow_forward(self, result: Pruned) -> None:
        """The same for a plain forward, until `after_forward`."""
        self.end_forward()  # of a call that was interrupted from the keyboard, which hooks do not see
        self.local.forward = ExitStack()
        self.follow("forward", result, self.local.forward)

    @outside_graphs
    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        """Stands behind `model.forward`, also after an error (then `output` is None)."""
        if getattr(self.local, "forward", None) is None:
            return
        run: DecoderRun | None = getattr(self.local, "run", None)
        self.end_forward()
        if output is not None and run is not None:
            run.check_finished()

    def end_forward(self) -> None:
        """Stop following this thread's plain forward, if there is one."""
        stack: ExitStack | None = getattr(self.local, "forward", None)
        self.local.forward = None
        if stack is not None:
            stack.close()

    def close(self) -> None:
        """Take away whatever is still open."""
        self.end_forward()
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
