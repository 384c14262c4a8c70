"""Pruning inside the language model: what happens before each decoder layer during one call."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from tokenprune.core.selection import Selection, StageCount
from tokenprune.core.strategy import Stage, Staged
from tokenprune.models.clock import now
from tokenprune.models.decoder.layout import Layout, Shorter, entering, made_rows, shorten
from tokenprune.models.decoder.reader import decoder_reader
from tokenprune.models.decoder.readings import (
    Found,
    keys_from_first,
    next_attention,
    read_inputs,
    read_states,
    with_readings,
    without_readings,
)
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.plan import Cut, Plan, makes
from tokenprune.models.prompt.choose import warn_if_constant
from tokenprune.models.prompt.labels import labels_at
from tokenprune.models.prompt.pruned import Pruned
from tokenprune.models.reading.attended import LayerOutput
from tokenprune.models.reading.sources import read_ahead, read_before
from tokenprune.models.reading.tap import tap

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]


class Change(NamedTuple):
    """A cut that has been decided: the shorter sequence, the length of the longer one, and new tokens (b, r, d)."""

    shorter: Shorter
    length: int
    new: Tensor | None


class Step(NamedTuple):
    """What the layers behind a cut get during one forward."""

    mask: Any
    rotary: tuple[Tensor, Tensor]


class DecoderRun:
    """One call of the model. `before_layer` stands in front of every decoder layer from `first` on.

    The first forward is the prefill: at each cut's layer tokens are chosen and hidden states gathered, and all later
    layers get masks and positions of the shorter sequence. In the forwards that follow nothing is chosen any more;
    layers behind a cut get a mask that fits their own, shorter cache.

    Attributes:
        layout: the sequences as they are behind the last cut.
        tokens: the visual tokens of each image behind the last cut that left some.
        left: original index of each token of each image behind the last cut; those made on the way count on from the
            number of the image's tokens.
        counts: for each image the number of visual tokens that enter each decoder layer.
        stages: for each image what each stage did.
        seconds: spent on choosing.
        finished: True when every cut has been made.
    """

    def __init__(self, adapter: Adapter, plan: Plan, before: Pruned, report: Callable[["DecoderRun"], None]) -> None:
        self.adapter = adapter
        self.plan = plan
        self.cuts = {cut.layer: cut for cut in plan.cuts}
        self.first = plan.cuts[0].layer - 1
        self.before = before
        self.report = report
        self.layout = self.whole = entering(before.prompt, before.pruned, before.selections)
        wants = tuple(dict.fromkeys(signal for cut in plan.cuts for signal in cut.wants))
        merged = torch.is_grad_enabled() and plan.before is not None and makes(plan.before, "merged")
        pairs = list(zip(before.prompt.tokens(wants, attached=merged), before.selections, strict=True))
        made = plan.makes_vectors
        self.tokens = [tokens.take_sound(s.indices, features=s.features if made else None) for tokens, s in pairs]
        self.entered = [tokens.visual for tokens in self.tokens]
        self.left = [tokens.positions for tokens in self.tokens]
        self.counts: list[list[int]] = [[] for _ in pairs]
        self.stages = [_first_stages(plan, s.stages, tokens.n, s.kept) for tokens, s in pairs]
        self.seconds = before.seconds
        self.finished = False
        self.copies = 1
        self.cache: Any = None
        self.forwards = 0
        self.appended = 0
        self.made: list[tuple[int, Layout]] = []  # layouts behind the cuts that dropped something
        self.step: dict[int, Step] = {}
        self.decided: dict[int, Change | None] = {}  # within the layer before
        self.taps = ExitStack()
        self.seen: list[Any] = []

    def close(self) -> None:
        """Take away what is still open, after an error too."""
        self.taps.close()

    def check_finished(self) -> None:
        """Raise when visual tokens went by and a stage did not fire.

        Raises:
            RuntimeError: naming the layers.
        """
        if not self.finished:
            layers = ", ".join(str(cut.layer) for cut in self.plan.cuts)
            raise RuntimeError(
                f"prune: visual tokens went through the language model but the stages at decoder layer {layers} did "
                "not fire: the decoder layers were not called as usual; call model.generate(...) or model(...)"
            )

    def selections(self) -> list[Selection]:
        """What is left of each image, told in its original tokens."""
        strategy, staged = self.plan.strategy, isinstance(self.plan.strategy, Staged)
        extends = any(stage.yields == "extended" for stage in strategy.stages)
        selections = []
        for whole, tokens, left, before, stages in zip(
            self.before.prompt.tokens(), self.tokens, self.left, self.before.selections, self.stages, strict=True
        ):
            rows, made = (left < whole.n).nonzero().flatten(), (left >= whole.n).nonzero().flatten()
            selections.append(
                Selection(
                    indices=left[rows],
                    total=whole.n,
                    requested=strategy.requested(whole),
                    features=tokens.visual[rows] if before.features is not None else None,
                    extra=tokens.visual[made] if extends else None,
                    stages=tuple(stages) if staged else (),
                )
            )
        return selections

    def labels(self) -> Tensor | None:
        """Labels of the slots behind the last cut, int64 (b, k); those that entered when nothing was dropped."""
        if self.layout is self.whole or self.before.prompt.labels is None:
            return self.before.pruned.labels
        return labels_at(self.before.prompt.labels, self.layout.columns)

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall | None:
        """The forward pre-hook of one layer: None leaves the call as it is."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if layer == self.first:
            self._begin(hidden, kwargs)
        if self.forwards == 1:
            hidden = self._prefill(layer, hidden, kwargs)
        behind = [made for made in self.made if made[0] <= layer]
        if not behind:
            return None
        cut, layout = behind[-1]
        if cut not in self.step:
            self.step[cut] = self._continue(cut, layout, hidden, kwargs)
        step = self.step[cut]
        # Attention reads positions from the rotary embedding. Gaps in `position_ids` mean packed sequences to Flash.
        changed = {"attention_mask": step.mask, "position_embeddings": step.rotary, "position_ids": None}
        if args:
            return (hidden, *args[1:]), {**kwargs, **changed}
        return args, {**kwargs, **changed, "hidden_states": hidden}

    def _begin(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> None:
        """A new forward: is it the prefill or one more token?"""
        self.forwards += 1
        self.step = {}
        rows, length = hidden.shape[:2]
        prompts, prompt_length = self.layout.mask.shape
        if self.forwards == 1:
            if length != prompt_length or rows % prompts:
                raise UnsupportedError(
                    f"prune: the language model got {rows} rows of {length} columns for {prompts} prompts of "
                    f"{prompt_length}; a prompt must go through it in one piece"
                )
            self.copies, self.cache = rows // prompts, kwargs.get("past_key_values")
            return
        self.appended += length
        if length != 1 or self.cache is None or kwargs.get("past_key_values") is not self.cache:
            raise UnsupportedError(
                f"prune: after the prompt the language model got {length} columns with "
                f"{'another' if self.cache is not None else 'no'} cache; inside the decoder only plain decoding with "
                "one cache, token by token, can be pruned"
            )

    def before_ffn(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The forward pre-hook of one layer's feed-forward part: what it gets instead, or None."""
        cut = self.cuts.get(layer + 1)
        if self.forwards != 1 or cut is None or not cut.before_ffn:
            return None
        self.taps.close()
        change = self.decided[cut.layer] = self._choose(cut, hidden, None)
        return None if change is None else self._arranged(hidden, change)

    def behind_ffn(self, layer: int, output: Tensor) -> Tensor | None:
        """The forward hook of that part: its output at the slots that are left; the others get nothing added.

        What was dropped is still in the residual stream and leaves it before the next layer.
        """
        change = self.decided.get(layer + 1) if self.forwards == 1 else None
        if change is None:
            return None
        source = self._for_beams(change.shorter.source).to(output.device)
        whole = output.new_zeros((output.shape[0], change.length, output.shape[2]))
        return whole.scatter(1, source.unsqueeze(-1).expand(output.shape), output)

    def behind_layers(self, output: Tensor) -> Tensor | None:
        """The forward hook of the last layer, for a cut within it."""
        cut = self.cuts.get(len(self.adapter.decoder_layers))
        if self.forwards != 1 or cut is None:
            return None
        self.taps.close()
        change = self.decided.pop(cut.layer) if cut.layer in self.decided else self._choose(cut, output, None)
        self._finish()
        return None if change is None else self._arranged(output, change)

    def _prefill(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self.taps.close()  # what was read at the layer before is in `seen`
        if layer in self.cuts:
            hidden = self._cut(self.cuts[layer], hidden, kwargs)
        following = self.cuts.get(layer + 1)
        if following is not None:
            blocks = self._mask_options(self.layout).get("block_sequence_ids")
            blocks = None if blocks is None else blocks[:: self.copies]
            signals = [signal for signal in following.wants if read_before(signal)]
            turn_back = self._turn_back(layer, kwargs)
            reader = decoder_reader(signals, self.layout, self.copies, blocks, turn_back=turn_back)
            if reader is not None:
                self.seen = self.taps.enter_context(tap(self.adapter.decoder_attention[layer], reader))
        if layer == self.plan.cuts[-1].layer:
            self._finish()
        return hidden

    def _turn_back(self, layer: int, kwargs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
        """What makes the keys of a layer independent of padding."""
        return self._turned(layer, self._rotary(kwargs))

    def _turned(self, layer: int, rotary: tuple[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
        attention, mask = self.adapter.decoder_attention[layer], self.layout.mask
        first = self._first_copies(rotary)
        return lambda key: keys_from_first(attention, key, first, mask.to(key.device))

    def _first_copies(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first row of each prompt."""
        cos, sin = (part if part.shape[-3] == 1 else part[..., :: self.copies, :, :] for part in rotary)
        return cos, sin

    def _rotary(self, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the sequence as it is behind the last cut that dropped something."""
        given: tuple[Tensor, Tensor] = kwargs["position_embeddings"]
        return self.step[self.made[-1][0]].rotary if self.made else given

    def _cut(self, cut: Cut, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Choose, unless that was done within the layer before, and gather what stays."""
        current = self._rotary(kwargs)
        change = self.decided.pop(cut.layer) if cut.layer in self.decided else self._choose(cut, hidden, current)
        if change is None:
            return hidden
        hidden = self._arranged(hidden, change)
        if cut.policy == "original":
            rotary = _gathered(current, self._for_beams(change.shorter.anchor).to(hidden.device))
        else:
            positions = self.layout.positions.repeat_interleave(self.copies, dim=-2)
            rotary = self.adapter.rotary(hidden, positions.to(hidden.device))
        self.made.append((cut.layer, self.layout))
        self.step[cut.layer] = Step(self._mask(cut.layer, self.layout, hidden), rotary)
        return hidden

    def _choose(self, cut: Cut, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Change | None:
        """Run the stages of a cut; None when they keep everything."""
        for counts, left in zip(self.counts, self.left, strict=True):
            counts.extend([left.shape[0]] * (cut.layer - len(counts)))
        start = now(hidden.device)
        # New tokens are made of hidden states, through which a gradient flows then; choosing needs none.
        learning = torch.is_grad_enabled() and any(makes(stage, "extended") for stage in cut.stages)
        with torch.set_grad_enabled(learning):
            readings = self._readings(cut, hidden if learning else hidden.detach(), rotary)
            self.tokens = with_readings(self.tokens, *readings)
        total = [left.shape[0] for left in self.left]
        kept = [torch.arange(n, device=self.layout.mask.device) for n in total]
        extra: list[Tensor] = []
        for stage in cut.stages:
            selections = stage.select_batch(self.tokens)
            if learning and stage.yields == "extended":
                warn_if_constant(stage, self.tokens, selections)
            extra = [selection.extra for selection in selections if selection.extra is not None]
            for i, selection in enumerate(selections):
                self._keep(i, stage, selection)
                rows = selection.indices.sort().values  # in the decoder tokens keep their order
                kept[i] = kept[i][rows.to(kept[i].device)]
        self.tokens = without_readings(self.tokens, cut.wants)
        new = [tokens.shape[0] for tokens in extra]
        whole = not sum(new) and all(rows.shape[0] == n for rows, n in zip(kept, total, strict=True))
        # Gaps that an earlier part left are closed in every row, whether something is dropped in the batch or not.
        if whole and (cut.policy == "original" or self.layout.closed):
            self.seconds += now(hidden.device) - start
            return None
        length, made = self.layout.mask.shape[1], made_rows(self.layout, extra) if sum(new) else None
        shorter = shorten(self.layout, kept, cut.policy, new)
        self.layout = shorter.layout
        self.seconds += now(hidden.device) - start
        return Change(shorter, length, made)

    def _keep(self, image: int, stage: Stage, selection: Selection) -> None:
        """Note what a stage left of an image."""
        tokens, rows = self.tokens[image], selection.indices.sort().values
        made = 0 if selection.extra is None else selection.extra.shape[0]
        count = StageCount(stage=repr(stage), tokens_in=tokens.n, tokens_out=selection.kept, made=made)
        self.stages[image].append(count)
        empties = stage.yields == "nothing"
        if not empties:  # `Tokens` are never empty
            self.tokens[image] = tokens.take_sound(rows, extra=selection.extra)
        self.left[image] = tokens.positions[:0] if empties else self.tokens[image].positions

    def _arranged(self, hidden: Tensor, change: Change) -> Tensor:
        """What stands in the slots behind a cut."""
        if change.new is not None:
            hidden = torch.cat([hidden, self._for_beams(change.new).to(hidden)], dim=1)
        source = self._for_beams(change.shorter.source).to(hidden.device)
        return hidden.gather(1, source.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    def _readings(self, cut: Cut, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None) -> list[Found]:
        """What the stages read, an entry per image."""
        found: list[Found] = list(self.seen)
        self.seen = []
        first = hidden[:: self.copies]
        turn_back = None if rotary is None else self._turned(cut.layer, rotary)
        signals = [signal for signal in cut.wants if read_ahead(signal)]
        ahead = decoder_reader(signals, self.layout, turn_back=turn_back)
        if ahead is not None and rotary is not None:
            layer, attention = self.adapter.decoder_layers[cut.layer], self.adapter.decoder_attention[cut.layer]
            with torch.no_grad():
                found.append(next_attention(layer, attention, first.detach(), self._first_copies(rotary), ahead))
        found.append(read_states(cut.wants, self.layout, LayerOutput(first, self.adapter.decoder.norm)))
        embeds = self.before.prompt.embeds.detach()
        found.append(read_inputs(cut.wants, self.layout, self.entered, embeds))
        return found

    def _continue(self, cut: int, layout: Layout, hidden: Tensor, kwargs: dict[str, Any]) -> Step:
        """One more token behind a cut."""
        rotary = kwargs["position_embeddings"]
        if layout.moved:
            following = layout.following.repeat_interleave(self.copies, dim=-1)[..., None]  # (b, 1) or (axes, b, 1)
            rotary = self.adapter.rotary(hidden, following.to(hidden.device) + self.appended - 1)
        return Step(self._mask(cut, layout, hidden), rotary)

    def _mask(self, cut: int, layout: Layout, hidden: Tensor) -> Any:  # noqa: ANN401
        """The library's own mask, sized by the cache of the cut's layer."""
        valid = self._for_beams(layout.mask).to(hidden.device)
        new = valid.new_ones((valid.shape[0], self.appended))
        mask: Any = create_causal_mask(
            config=self.adapter.decoder.config,
            inputs_embeds=hidden,
            attention_mask=torch.cat([valid, new], dim=1),
            past_key_values=self.cache,
            position_ids=None,
            layer_idx=cut,
            **self._mask_options(layout),
        )
        return mask

    def _mask_options(self, layout: Layout) -> dict[str, Any]:
        """What the family adds to the mask of a prompt; tokens that follow see what stands before them."""
        if self.forwards > 1:
            return {}
        columns = layout.columns.clamp_min(0)  # padding is masked, and tokens made on the way count as the prompt
        extras = {
            name: value.to(columns.device).gather(1, columns).masked_fill(layout.columns < 0, 0)
            for name, value in self.before.prompt.extras.items()
        }
        return {name: self._for_beams(value) for name, value in self.adapter.mask_options(extras).items()}

    def _for_beams(self, value: Tensor) -> Tensor:
        return value if self.copies == 1 else value.repeat_interleave(self.copies, dim=0)

    def _finish(self) -> None:
        layers = len(self.adapter.decoder_layers)
        for counts, left in zip(self.counts, self.left, strict=True):
            counts.extend([left.shape[0]] * (layers - len(counts)))
        self.finished = True
        self.report(self)


def _gathered(rotary: tuple[Tensor, Tensor], source: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of the slots that stay."""
    cos, sin = (part.expand(source.shape[0], -1, -1) for part in rotary)
    index = source.to(cos.device).unsqueeze(-1).expand(-1, -1, cos.shape[-1])
    return cos.gather(1, index), sin.gather(1, index)


def _first_stages(plan: Plan, stages: tuple[StageCount, ...], tokens_in: int, kept: int) -> list[StageCount]:
    if plan.before is None or stages:
        return list(stages)
    return [StageCount(stage=repr(plan.before), tokens_in=tokens_in, tokens_out=kept)]
