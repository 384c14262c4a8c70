"""`Pipeline`: strategies one after another."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, cast, final

import torch

from tokenprune.budget import Keep
from tokenprune.strategy import PruningStrategy, Site
from tokenprune.tokens import DECODER_SIGNALS, TEXT_FIELDS, Selection, StageCount, Tokens

_SITE_ORDER: dict[str, int] = {"tower": 0, "projector": 1, "decoder": 2}


class StagedStrategy(PruningStrategy):
    """A strategy made of stages: each selects among what the one before it kept.

    Facts (`needs`, `site`, `deterministic`, ...) follow from the stages, and whether they fit together is checked when
    the object is built.
    """

    @property
    @abstractmethod
    def stages(self) -> tuple[PruningStrategy, ...]:
        """The stages, in the order in which they run."""

    @final
    def _derive_facts(self) -> None:
        """Set the facts that follow from the stages; for the constructor of a subclass."""
        _check_stages(self.stages)
        facts: dict[str, object] = {
            "needs": frozenset[str]().union(*(stage.needs for stage in self.stages)),
            "uses": frozenset[str]().union(*(stage.uses for stage in self.stages)),
            "site": self.stages[-1].site,
            "layer": self.stages[-1].layer,
            "positions": self.stages[-1].positions,
            "deterministic": all(stage.deterministic for stage in self.stages),
            "equivariant": all(stage.equivariant for stage in self.stages),
            "merges": any(stage.merges for stage in self.stages),
            "extends": any(stage.extends for stage in self.stages),
            "differentiable": all(stage.differentiable for stage in self.stages),
            "whole_raster": self.stages[0].whole_raster,
            "ascending": all(stage.ascending for stage in self.stages),
            "before_ffn": self.stages[-1].before_ffn,
            "withdraws": self.stages[-1].withdraws,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningStrategy):
            return NotImplemented
        return self.stages == (other.stages if isinstance(other, StagedStrategy) else (other,))

    def __hash__(self) -> int:
        # A pipeline of one stage equals that stage, so their hashes must agree.
        return hash(self.stages[0] if len(self.stages) == 1 else self.stages)


class Pipeline(StagedStrategy):
    """Run strategies in sequence, in any order that makes sense: `Pipeline([a, b])` is `a >> b`.

    Each stage has its own budget; a share always refers to the image's original tokens. Indices of the result always
    refer to the image that came in. Pipelines inside are flattened.

    Args:
        stages: at least one strategy.

    Raises:
        TypeError: when a stage is no strategy.
        ValueError: when there is no stage, a stage acts earlier in the model than the one before it, or a stage needs
            signals of single tokens after a stage that merged them.

    Examples:
        >>> from tokenprune import GreedyRepMax, MIAlignment
        >>> MIAlignment(keep=0.8) >> GreedyRepMax(keep=64)
        mi_alignment(keep=0.8) >> greedy_repmax(keep=64)
    """

    name: ClassVar[str] = "pipeline"
    summary: ClassVar[str] = "run strategies one after another"
    _parts: tuple[PruningStrategy, ...]
    _stages: tuple[PruningStrategy, ...]

    def __init__(self, stages: Iterable[PruningStrategy]) -> None:
        parts: list[PruningStrategy] = []
        flat: list[PruningStrategy] = []
        for stage in stages:
            if not isinstance(stage, PruningStrategy):
                raise TypeError(
                    f"Pipeline: a stage must be a PruningStrategy, got {stage!r} of type {type(stage).__name__}"
                )
            parts.extend(stage._parts if isinstance(stage, Pipeline) else [stage])
            flat.extend(stage.stages if isinstance(stage, StagedStrategy) else [stage])
        if not flat:
            raise ValueError("Pipeline: stages is empty; give at least one strategy")
        object.__setattr__(self, "_parts", tuple(parts))
        object.__setattr__(self, "_stages", tuple(flat))
        self._derive_facts()

    @property
    def stages(self) -> tuple[PruningStrategy, ...]:
        """The stages, in the order in which they run."""
        return self._stages

    def at_depth(self, depth: int) -> PruningStrategy:
        """The same with every part as it runs in a language model of `depth` layers."""
        parts = [part.at_depth(depth) for part in self._parts]
        same = all(new is old for new, old in zip(parts, self._parts, strict=True))
        return self if same else Pipeline(parts)

    @classmethod
    def example(cls) -> "Pipeline":
        """Two plain stages."""
        from tokenprune.alignment import MIAlignment

        return cls([MIAlignment(0.8), MIAlignment(0.5, metric="cosine")])

    @property
    def keep(self) -> Keep:  # type: ignore[override]
        """The last stage's budget."""
        return self._stages[-1].keep

    def requested(self, tokens: Tokens) -> int | None:
        """What the tightest stage asks for; None when a stage finds its number itself."""
        return requested_by_stages(self._stages, tokens)

    def _select(self, tokens: Tokens) -> Selection:
        return run_stages(self._stages, [tokens])[0]

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        return run_stages(self._stages, batch)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Pipeline is immutable; build a new one instead of setting {name}")

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self._stages))


def requested_by_stages(stages: Sequence[PruningStrategy], tokens: Tokens) -> int | None:
    """The smallest count that the stages ask for; None when one of them has no fixed budget."""
    counts = [stage.requested(tokens) for stage in stages]
    return None if None in counts else min(cast("list[int]", counts))


def run_stages(stages: Sequence[PruningStrategy], batch: Sequence[Tokens]) -> list[Selection]:
    """Run the stages on several images; indices refer to the rows of the images given.

    The images must be sound, as they are inside `_select_batch`: only tokens that a stage made are looked at again.
    """
    current = list(batch)
    rows: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    traces: list[list[StageCount]] = [[] for _ in batch]
    merged = makes = False
    selections: list[Selection] = []
    for stage in stages:
        selections = stage.select_batch(current) if merged else stage._checked(current)
        text, last = repr(stage), stage is stages[-1]
        for i, selection in enumerate(selections):
            made = 0 if selection.extra is None else selection.extra.shape[0]
            trace = StageCount(stage=text, tokens_in=current[i].n, tokens_out=selection.kept, made=made)
            traces[i].append(trace)
            # Made tokens of a stage stand behind in a sequence, which there is none of here: later stages miss them.
            if not stage.withdraws and (not last or merged or stage.merges):
                # What the vision tower merged are the tokens themselves: signals read in the tower belong to them.
                features = None if stage.site == "tower" else selection.features
                current[i] = current[i]._take(selection.indices, features=features)
        kept = [selection.indices for selection in selections]
        before = rows
        rows = [row.index_select(0, taken) for row, taken in zip(before, kept, strict=True)] if before else kept
        merged = merged or stage.merges
        makes = makes or stage.extends
    return [
        Selection(
            indices=rows[i],
            total=batch[i].n,
            features=current[i].visual[: rows[i].shape[0]] if merged else None,
            extra=_extra(selections[i], current[i]) if makes else None,
            order=_pick_order(selections[i], before[i] if before else None),
            gains=selections[i].gains,
            scores=selections[i].scores if len(stages) == 1 else None,
            sizes=_sizes(current[i]),
            stages=tuple(traces[i]),
        )
        for i in range(len(batch))
    ]


def _extra(last: Selection, tokens: Tokens) -> torch.Tensor:
    return tokens.visual.new_empty((0, tokens.visual.shape[1])) if last.extra is None else last.extra


def _sizes(tokens: Tokens) -> torch.Tensor | None:
    return None if tokens.tower_size is None else tokens.tower_size[0]


def _pick_order(last: Selection, rows: torch.Tensor | None) -> torch.Tensor | None:
    """The last stage's pick order, told in rows of the image that came in; `rows` are those that the stage got."""
    return last.order if last.order is None or rows is None else rows.index_select(0, last.order)


def _check_stages(stages: Sequence[PruningStrategy]) -> None:
    merged_by: PruningStrategy | None = None
    site: Site = stages[0].site
    layer = 0
    for position, stage in enumerate(stages):
        if stage.whole_raster and position > 0:
            raise ValueError(f"Pipeline: {stage!r} needs the complete raster of tokens; put it first")
        if _SITE_ORDER[stage.site] < _SITE_ORDER[site]:
            raise ValueError(
                f"Pipeline: {stage!r} acts at the {stage.site}, earlier in the model than the stage before it "
                f"({site}); order the stages tower, projector, decoder"
            )
        site = stage.site
        if stage.layer is not None:
            if stage.layer < layer:
                raise ValueError(
                    f"Pipeline: {stage!r} acts at decoder layer {stage.layer}, before the stage in front of it (layer "
                    f"{layer}); order the stages by layer"
                )
            layer = stage.layer
        # Signals of the decoder are those of whatever tokens get there.
        _check_place(stage, position, stages)
        lost = sorted(stage.needs - TEXT_FIELDS - frozenset(DECODER_SIGNALS) - {"key"})
        if merged_by is not None and lost:
            raise ValueError(
                f"Pipeline: {stage!r} needs Tokens.{lost[0]} of the original tokens, but {merged_by!r} before it makes "
                f"new ones; put {stage!r} first"
            )
        merged_by = stage if (stage.merges and stage.site != "tower") or stage.extends else merged_by


def _check_place(stage: PruningStrategy, position: int, stages: Sequence[PruningStrategy]) -> None:
    """What a stage demands of its neighbours: that there is none behind it, or none at the same layer."""
    if stage.withdraws and stage is not stages[-1]:
        raise ValueError(f"Pipeline: {stage!r} leaves no visual token to the stages behind it; put it last")
    before = stages[position - 1] if position else None
    if before is not None and before.extends and before.layer == stage.layer is not None:
        raise ValueError(
            f"Pipeline: {before!r} makes tokens at decoder layer {before.layer}, about which {stage!r} at the same "
            "layer can know nothing; give it a later layer"
        )


__all__ = ["Pipeline", "StagedStrategy", "requested_by_stages", "run_stages"]
