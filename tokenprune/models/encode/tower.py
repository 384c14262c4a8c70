"""Merging inside the vision tower: layers of CLIP and SigLIP towers with a merge in them."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenprune.core.merging import Merge, Merging, TowerState
from tokenprune.core.signals import TOWER_SIZE, FromProjector, FromTower, Signal
from tokenprune.kernels.precision import without_autocast
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter, TowerUse
from tokenprune.models.reading.vision import Vision
from tokenprune.models.wrapped.checkpointing import checkpointed, not_checkpointed

_PARTS = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
_turn = threading.RLock()


def check_layers(strategy: Merging, layers: Sequence[nn.Module], family: str) -> None:
    """Raise unless the layers are of the known kind and their attention takes the masks that merging needs.

    Raises:
        UnsupportedError: naming what differs.
    """
    for layer in layers:
        lacking = [part for part in _PARTS if not hasattr(layer, part)]
        if lacking or not hasattr(layer.self_attn, "k_proj"):
            raise UnsupportedError(
                f"prune: {strategy!r} merges inside layers like CLIP's and SigLIP's, but {type(layer).__name__} of "
                f"{family} has no {lacking[0] if lacking else 'k_proj'}; choose a strategy of the site 'projector'"
            )
        backend = layer.self_attn.config._attn_implementation  # type: ignore[union-attr]
        if backend not in ("sdpa", "eager"):
            raise UnsupportedError(
                f"prune: {strategy!r} adds token sizes to the attention logits of the vision tower, which its backend "
                f"{backend!r} cannot take; load the model with the vision tower on 'sdpa' or 'eager'"
            )


class TowerRun:
    """One pass through a tower that merges.

    Images of one batch may end with different numbers of rows; the shorter ones are filled up at the end with rows that
    nobody attends to.

    Attributes:
        length: rows of the sequence before any merge.
        states: for each image its sequence as it is behind the last merge.
        steps: for each image and layer what was merged, and the sizes before.
        fired: how often each layer ran.
    """

    def __init__(self, strategy: Merging, use: TowerUse) -> None:
        self.strategy = strategy
        self.use = use
        self.states: list[TowerState] = []
        self.steps: list[list[tuple[Merge | None, Tensor]]] = []
        self.fired = [0] * len(use.layers)
        self.again = [checkpointed(layer) for layer in use.layers]
        self.length = 0
        self.keys: Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, the layers merge. Nothing stays on them."""
        with ExitStack() as stack:
            # Layers computed again in the backward pass would not merge then: only their parts are.
            stack.enter_context(not_checkpointed(self.use.layers))
            for number, layer in enumerate(self.use.layers):
                attributes = vars(layer)
                if "forward" in attributes:
                    stack.callback(attributes.__setitem__, "forward", attributes["forward"])
                else:
                    stack.callback(attributes.pop, "forward", None)
                # Not a hook: transformers' own hooks, which collect hidden states, may run before later ones.
                attributes["forward"] = partial(self.forward, number, layer)
                keys: nn.Module = layer.self_attn.k_proj  # type: ignore[union-attr,assignment]
                stack.callback(keys.register_forward_hook(self.note_keys).remove)
            yield

    def note_keys(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """The hook behind a key projection."""
        self.keys = output.detach()

    def forward(
        self,
        number: int,
        layer: Any,  # noqa: ANN401
        hidden_states: Float[Tensor, "b p c"],
        attention_mask: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Float[Tensor, "b r c"]:
        """Stands in for the layer's own `forward`."""
        if attention_mask is not None:
            raise UnsupportedError("prune: the vision tower masks patches, which does not go with merging them")
        if number == 0:
            self.length = hidden_states.shape[1]
            self.strategy.check_raster(self.length - self.use.prefix, self.use.grid)
            self.states = [TowerState.whole(image, self.use.grid) for image in hidden_states.detach()]
            self.steps = [[] for _ in self.states]
        self.fired[number] += 1
        mask = self.mask(hidden_states)

        def attend(states: Tensor) -> Tensor:
            attended, *_ = layer.self_attn(hidden_states=layer.layer_norm1(states), attention_mask=mask, **kwargs)
            return states + attended

        def feed(states: Tensor) -> Tensor:
            return states + layer.mlp(layer.layer_norm2(states))

        run = layer._gradient_checkpointing_func if self.again[number] else _call
        hidden: Tensor = run(attend, hidden_states)
        if self.strategy.place.after == "attention":
            hidden = self.merge(number, hidden, layer.self_attn.num_heads)
        hidden = run(feed, hidden)
        if self.strategy.place.after == "layer":
            hidden = self.merge(number, hidden, layer.self_attn.num_heads)
        return hidden

    def mask(self, hidden: Float[Tensor, "b p c"]) -> Float[Tensor, "b 1 p p"] | None:
        """What is added to the attention logits: log sizes, minus infinity for rows that only fill up."""
        length, shortest = hidden.shape[1], min(state.size.shape[0] for state in self.states)
        proportional = self.strategy.place.weighted and shortest < self.length
        if not proportional and shortest == length:
            return None
        sizes = torch.stack([nn.functional.pad(state.size, (0, length - state.size.shape[0])) for state in self.states])
        bias = sizes.log() if proportional else torch.zeros_like(sizes).masked_fill(sizes == 0, -torch.inf)
        return bias.to(hidden.dtype)[:, None, None].expand(-1, 1, length, -1)

    def merge(self, number: int, hidden: Float[Tensor, "b p c"], heads: int) -> Float[Tensor, "b r c"]:
        """Ask the strategy for every image, and make the shorter batch."""
        keys, self.keys = self.keys, None
        if keys is None:
            raise RuntimeError("prune: the key projection of the vision tower was not called; no merge is possible")
        merged, made = [], []
        for i, (old, rows) in enumerate(zip(self.states, hidden, strict=True)):
            count = old.x.shape[0]
            state = replace(old, x=rows[:count])
            metric = keys[i, :count].unflatten(-1, (heads, -1)).float().mean(1)
            with torch.no_grad(), without_autocast(hidden.device):
                merge = self.strategy.merge(
                    number,
                    len(self.use.layers),
                    replace(state, x=state.x.detach()),
                    metric if self.strategy.place.after == "attention" else None,
                    prefix=self.use.prefix,
                    patches=self.length - self.use.prefix,
                )
            self.steps[i].append((merge, old.size))
            after = state if merge is None else state.merged(merge)
            merged.append(after.x)
            made.append(replace(after, x=after.x.detach()))
        self.states = made
        return nn.utils.rnn.pad_sequence(merged, batch_first=True)

    def group(self, image: int, layer: int) -> Int[Tensor, " p"]:
        """For each row that enters a layer, the row at the end that it has become a part of."""
        row = torch.arange(self.sizes(image, layer).shape[0], device=self.states[image].place.device)
        for merge, _ in self.steps[image][layer:]:
            row = row if merge is None else merge.row_of[row]
        return row

    def sizes(self, image: int, layer: int) -> Float[Tensor, " p"]:
        """Sizes of the rows that enter a layer."""
        steps = self.steps[image]
        return steps[layer][1] if layer < len(steps) else self.states[image].size


def _call(part: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    return part(states)


def encode_merged(adapter: Adapter, inputs: Mapping[str, Any], want: Collection[Signal], strategy: Merging) -> Vision:
    """`adapter.encode` with merging in the tower. One call at a time: others wait for their turn.

    Every image has as many tokens as without merging. A merged token stands at the place of one of its patches; rows at
    the other places are zero, and `tower_size` says which is which. Signals belong to merged tokens, too: states are
    theirs, keys are averaged by size over the rows that the last layer merged, attention adds up.

    Args:
        adapter: the model's adapter.
        inputs: as for `Adapter.encode`.
        want: signals.
        strategy: what merges.

    Raises:
        UnsupportedError: when the tower cannot be pruned so.
        RuntimeError: when a layer did not run once, so that patches went by unmerged.
    """
    use = adapter.tower_use(inputs)
    check_layers(strategy, use.layers, type(adapter.model).__name__)
    if use.crop > use.prefix or not use.layers:
        raise UnsupportedError(
            f"prune: {strategy!r} needs a layer before the chosen feature layer, and of what it leaves the projector "
            f"must get every patch; here {len(use.layers)} layers come before it and {use.crop} rows are cut off, of "
            f"which {use.prefix} are no patches"
        )
    run = TowerRun(strategy, use)
    with _turn, run.installed():
        vision = adapter.encode(inputs, want=want)
    if any(count != 1 for count in run.fired) or len(run.states) != len(vision.counts):
        raise RuntimeError(
            f"prune: {strategy!r} did not fire as it should: the layers of the vision tower ran {run.fired} times for "
            f"{len(vision.counts)} images, and each must run once; patches would have gone by unmerged"
        )
    return _spread(vision, run, len(adapter.vision_attention))


def _spread(vision: Vision, run: TowerRun, layers: int) -> Vision:
    """Merged tokens and their signals at the places of their patches."""
    crop, count = run.use.crop, run.length - run.use.crop
    places = [state.place[crop:] - crop for state in run.states]

    def spread(rows: Tensor, image: int) -> Tensor:
        place = places[image].to(rows.device)
        return rows.new_zeros((count, *rows.shape[1:])).index_copy(0, place, rows[: place.shape[0]])

    signals: dict[Signal, tuple[Any, ...]] = {}
    for signal, values in vision.signals.items():
        axis, source = signal.token_axis, signal.source
        if axis is None or not isinstance(source, FromTower | FromProjector):
            signals[signal] = values
        elif isinstance(source, FromProjector):
            signals[signal] = tuple(spread(rows, i) for i, rows in enumerate(values))
        else:
            layer = len(run.use.layers) - 1 if source.layer == "used" else source.layer % layers
            carry = _attention if signal.merged == "sum" else _keys
            carried = [carry(run, i, layer, rows) for i, rows in enumerate(values)]
            signals[signal] = tuple(spread(rows.movedim(axis, 0), i).movedim(0, axis) for i, rows in enumerate(carried))
    signals[TOWER_SIZE] = tuple(spread(state.size[crop:], i)[None] for i, state in enumerate(run.states))
    return replace(
        vision,
        features=torch.cat([spread(rows, i) for i, rows in enumerate(vision.features.split(vision.counts))]),
        counts=(count,) * len(places),
        grids=(run.use.grid,) * len(places),
        signals=signals,
    )


def _keys(run: TowerRun, image: int, layer: int, rows: Float[Tensor, "_ e"]) -> Float[Tensor, "r e"]:
    """Keys of the rows that entered a layer, averaged by size over what has become one since."""
    group, size = _entered(run, image, layer, rows.device)
    kept = run.states[image].size.shape[0] - run.use.crop
    total = size.new_zeros(kept).index_add(0, group, size)
    share = size / total[group]  # of each row in its mean; sums of rows could overflow
    weighted = rows[: group.shape[0]].float() * share[:, None]
    return weighted.new_zeros((kept, rows.shape[1])).index_add(0, group, weighted).to(rows.dtype)


def _attention(run: TowerRun, image: int, layer: int, rows: Float[Tensor, "h _"]) -> Float[Tensor, "h r"]:
    """Attention to the rows that entered a layer, with their sizes as the layer saw them, summed over groups."""
    group, size = _entered(run, image, layer, rows.device)
    weight = size if run.strategy.place.weighted else torch.ones_like(size)
    rest = (1 - rows.sum(1, keepdim=True)).clamp_min(0) if run.use.crop else torch.zeros_like(rows[:, :1])
    weighted = rows[:, : group.shape[0]] * weight
    weighted = weighted / (weighted.sum(1, keepdim=True) + rest)
    kept = run.states[image].size.shape[0] - run.use.crop
    return weighted.new_zeros((rows.shape[0], kept)).index_add(1, group, weighted)


def _entered(run: TowerRun, image: int, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
    crop = run.use.crop
    return run.group(image, layer)[crop:].to(device) - crop, run.sizes(image, layer)[crop:].to(device)
