"""`PruningStrategy`, the interface of every method, and what methods are made of: stages at places of the model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, TypeVar, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.core import registry
from tokenprune.core.answering import answers
from tokenprune.core.answers import check_answers
from tokenprune.core.budget import Keep, check_keep, keep_count
from tokenprune.core.checks import Yields, check_images, check_order
from tokenprune.core.configured import Configured
from tokenprune.core.places import BeforeDecoder, InDecoder, Place
from tokenprune.core.running import run_stages
from tokenprune.core.selection import Choice, Selection
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import top_each
from tokenprune.kernels.ties import as_given

Promise = Literal["ascending", "deterministic", "differentiable", "equivariant"]
"""What a stage can promise: kept tokens enter the model in raster order; the same tokens always give the same answer; a
gradient can flow through the vectors that it makes; permuting the tokens only permutes the answer (up to ties)."""
PLAIN: frozenset[Promise] = frozenset({"ascending", "deterministic", "differentiable"})
EQUIVARIANT: frozenset[Promise] = PLAIN | {"equivariant"}

_S = TypeVar("_S", bound="PruningStrategy")


class PruningStrategy(Configured, ABC):
    """A rule that decides which visual tokens of an image stay: one stage or several.

    No state is written while selecting, so one instance may serve many images and threads. Methods are written as a
    `Scoring`, a `Stage` or a `Staged` preset, decorated with `@strategy`.

    Attributes:
        name: what `parse`, the command line and result ids call it.
        paper: where the method comes from; "" for controls.
        example: text of an instance for the contract suite and tables; "" for `name(keep=0.5)`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @property
    @abstractmethod
    def stages(self) -> "tuple[Stage, ...]":
        """The decisions, in the order in which they are made."""

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Signals that the stages read, those with a default included."""
        return tuple(dict.fromkeys(signal for stage in self.stages for signal in stage.needs))

    @property
    def place(self) -> Place:
        """Where the last stage acts."""
        return self.stages[-1].place

    @property
    def yields(self) -> Yields:
        """What the stages leave together: "nothing", "merged" vectors, an "extended" subset, or a "subset"."""
        kinds = {stage.yields for stage in self.stages}
        order: tuple[Yields, ...] = ("nothing", "merged", "extended", "subset")
        return next(kind for kind in order if kind in kinds)

    @property
    def promises(self) -> frozenset[Promise]:
        """What all stages promise."""
        return frozenset.intersection(*(stage.promises for stage in self.stages))

    def requested(self, tokens: Tokens) -> int | None:
        """Count what is asked for of this image, not cut at what there is; None when a stage finds its number itself.

        The tightest stage decides.
        """
        counts = [stage.requested(tokens) for stage in self.stages]
        return None if None in counts else min(cast("list[int]", counts))

    def with_keep(self: _S, keep: Keep) -> _S:
        """Return the same strategy with another budget.

        Raises:
            ValueError: when it has no `keep`.
        """
        return self._with("keep", keep, "no budget that could be replaced; choose a strategy with `keep`")

    def with_seed(self: _S, seed: int) -> _S:
        """Return the same strategy with another seed.

        Raises:
            ValueError: when it has no `seed`.
        """
        return self._with("seed", seed, "no seed")

    def at_depth(self: _S, depth: int) -> _S:
        """Return the strategy as it runs in a language model of `depth` layers, with every layer named.

        That is itself, unless its default layers are those of a certain model; such strategies override it.

        Raises:
            ValueError: when there are too few layers.
        """
        del depth
        return self

    @final
    def select(self, tokens: Tokens) -> Selection:
        """Choose the tokens of one image to keep.

        Args:
            tokens: the image; must carry every signal of `needs` without a default.

        Returns:
            The kept rows of `tokens`.

        Raises:
            TypeError: when `tokens` is no `Tokens`.
            ValueError: when a signal is missing, or a tensor holds NaN or infinity.
            NotFiniteError: when the method made token vectors that hold NaN or infinity; it is a ValueError, too.
            RuntimeError: when the method broke its own contract (a bug in the strategy, not in the call).
        """
        return self.select_batch([tokens])[0]

    @final
    def select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Choose for several images; the answers equal those of a loop over `select`.

        Args:
            batch: the images, of any sizes.

        Returns:
            One `Selection` per image, in the same order.
        """
        check_images(type(self).__name__, self.needs, batch)
        return self.run(batch)

    @abstractmethod
    def run(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Choose for images that are known to be sound."""

    def _check_built(self) -> None:
        """Check the finished object; called by `@strategy` after the fields."""

    @classmethod
    def _check_class(cls) -> None:
        """Check the finished class; called by `@strategy`."""
        abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
        if abstract:
            raise TypeError(f"{cls.__name__}: write {', '.join(sorted(abstract))}")
        for name in ("select", "select_batch", "run", "count", "__rshift__"):
            owner = next((base for base in cls.__mro__ if name in vars(base)), None)
            if owner is not None and owner.__module__ != __name__:
                raise TypeError(
                    f"{cls.__name__}: overrides {name}, which is final; write choose, choose_batch or score"
                )

    def __rshift__(self, other: "PruningStrategy") -> "Pipeline":
        """`a >> b`: the pipeline that runs `a`, then `b` on what `a` kept."""
        return Pipeline([self, other]) if isinstance(other, PruningStrategy) else NotImplemented


class Stage(PruningStrategy):
    """One decision at one place of the model.

    A subclass writes `choose`, or `choose_batch` where several images can be handled at once. What else it says of
    itself are attributes or properties: `needs`, `place`, `yields`, `promises`; a field `keep` is its budget.
    """

    @property
    @final
    def stages(self) -> "tuple[Stage, ...]":
        """The stage itself."""
        return (self,)

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Signals that it reads. One without a default must be known; the others may be."""
        return ()

    @property
    def place(self) -> Place:
        """Where it acts."""
        return BeforeDecoder()

    @property
    def yields(self) -> Yields:
        """What it leaves: "subset", "merged" vectors, an "extended" subset, or "nothing"."""
        return "subset"

    @property
    def promises(self) -> frozenset[Promise]:
        """What can be relied on; the contract suite checks it."""
        return PLAIN

    def requested(self, tokens: Tokens) -> int | None:
        """Count what `keep` asks for; None without such a field, or when it is a word."""
        keep = getattr(self, "keep", None)
        return keep_count(keep, tokens.original) if isinstance(keep, int | float) else None

    def foresee(self, left: int, original: int) -> int | None:
        """Count an image's tokens after this stage, by its budget alone; None when it depends on the image.

        Args:
            left: tokens of the image that come, those made on the way included.
            original: number of the image's original tokens.
        """
        requested = self.requested(Tokens(torch.zeros(left, 1), total=original))
        return None if requested is None else min(requested, left)

    def at(self, layer: int) -> "Stage":
        """Return the same stage at a decoder layer; one that acts before the language model then acts inside it.

        Raises:
            ValueError: when it reads the vision tower or makes new tokens.
        """
        if isinstance(self.place, InDecoder):
            return self._with("layer", layer, "no layer that could be replaced")
        return cast("Stage", registry.find("at_layer")(self, layer=layer))

    @final
    def count(self, tokens: Tokens) -> int:
        """Count the tokens to keep of this image: `requested`, cut at what there is. For use in `choose`."""
        requested = self.requested(tokens)
        return tokens.n if requested is None else min(requested, tokens.n)

    def choose(self, tokens: Tokens) -> Choice:
        """Decide about one image; it has been checked, and rows are numbered as in it. Write this or `choose_batch`."""
        return self.choose_batch([tokens])[0]

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Decide about several images; the answers must equal those of a loop over `choose`."""
        return [self.choose(tokens) for tokens in batch]

    @final
    def run(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Choose, and check the answers."""
        owner, requested = type(self).__name__, [self.requested(tokens) for tokens in batch]
        given = self._answers(batch)
        choices = check_answers(owner, self.yields, batch, given, requested, ascending="ascending" in self.promises)
        return [
            Selection.of(choice, total=tokens.n, requested=wanted)
            for tokens, choice, wanted in zip(batch, choices, requested, strict=True)
        ]

    def _answers(self, batch: Sequence[Tokens]) -> list[Choice]:
        makes = self.yields in ("merged", "extended") and "differentiable" in self.promises
        return answers(self.choose_batch, batch, makes=makes)

    @classmethod
    def _check_class(cls) -> None:
        super()._check_class()
        if cls.choose is Stage.choose and cls.choose_batch is Stage.choose_batch:
            raise TypeError(f"{cls.__name__}: write choose or choose_batch")


class Scoring(Stage):
    """A stage that keeps the tokens with the largest scores; ties go to the lowest index."""

    @property
    def promises(self) -> frozenset[Promise]:
        """As a stage, and permuting the tokens only permutes the answer."""
        return EQUIVARIANT

    @abstractmethod
    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """Rate every token of one image in the precision that decides; larger is better."""

    @final
    def choose(self, tokens: Tokens) -> Choice:
        """Keep the largest scores of one image."""
        return self.choose_batch([tokens])[0]

    @final
    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Rank the images side by side."""
        scores = [self.score(tokens) for tokens in batch]
        kept = top_each(scores, [self.count(tokens) for tokens in batch])
        return [
            Choice(indices, order=order, scores=as_given(score, tokens.visual))
            for tokens, (indices, order), score in zip(batch, kept, scores, strict=True)
        ]


class Staged(PruningStrategy):
    """A strategy made of stages: each selects among what the one before it kept.

    Whether the stages fit together is checked when the object is built.
    """

    def requested(self, tokens: Tokens) -> int | None:
        """Count what `keep` asks for; without such a field the tightest stage decides."""
        keep = None if isinstance(self, Pipeline) else getattr(self, "keep", None)
        return keep_count(keep, tokens.original) if isinstance(keep, int | float) else super().requested(tokens)

    def stages_for(self, tokens: Tokens) -> tuple[Stage, ...]:
        """The stages for one image, for presets whose first budgets depend on it."""
        del tokens
        return self.stages

    def _check_built(self) -> None:
        check_order(self.stages)

    @final
    def run(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Run the stages."""
        if type(self).stages_for is Staged.stages_for:
            groups = {self.stages: list(range(len(batch)))}
        else:
            groups = {}
            for i, tokens in enumerate(batch):
                groups.setdefault(self.stages_for(tokens), []).append(i)
        found: dict[int, Selection] = {}
        for stages, members in groups.items():
            answers = run_stages(stages, [batch[i] for i in members])
            found.update(zip(members, answers, strict=True))
        return [
            Selection.of(found[i], total=tokens.n, requested=self.requested(tokens)) for i, tokens in enumerate(batch)
        ]


@final
class Pipeline(Staged):
    """Run strategies in sequence, in any order that makes sense: `Pipeline([a, b])` is `a >> b`.

    Each strategy has its own budget; a share always refers to the image's original tokens. Indices of the result always
    refer to the image that came in. Pipelines inside are flattened.

    Args:
        parts: at least one strategy.

    Raises:
        TypeError: when a part is no strategy.
        ValueError: when there is none, a stage acts earlier in the model than the one before it, or a stage needs
            signals of single tokens after a stage that merged them.

    Examples:
        >>> from tokenprune import GreedyRepMax, MIAlignment
        >>> MIAlignment(keep=0.8) >> GreedyRepMax(keep=64)
        mi_alignment(keep=0.8) >> greedy_repmax(keep=64)
    """

    name: ClassVar[str] = "pipeline"
    parts: tuple[PruningStrategy, ...]

    def __init__(self, parts: Iterable[PruningStrategy]) -> None:
        flat: list[PruningStrategy] = []
        for part in parts:
            if not isinstance(part, PruningStrategy):
                raise TypeError(
                    f"Pipeline: a stage must be a PruningStrategy, got {part!r} of type {type(part).__name__}"
                )
            flat.extend(part.parts if isinstance(part, Pipeline) else [part])
        if not flat:
            raise ValueError("Pipeline: stages is empty; give at least one strategy")
        self.__dict__["parts"] = tuple(flat)
        self._check_built()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of all parts."""
        return tuple(stage for part in self.parts for stage in part.stages)

    @property
    def keep(self) -> Keep | None:
        """The last part's budget, where it has one."""
        return getattr(self.parts[-1], "keep", None)

    def with_keep(self, keep: Keep) -> "Pipeline":
        """Return the same pipeline with another budget of its last part."""
        check_keep(keep, owner="Pipeline")
        return Pipeline([*self.parts[:-1], self.parts[-1].with_keep(keep)])

    def with_seed(self, seed: int) -> "Pipeline":
        """Return the same pipeline with another seed in every part that has one."""
        seeded = [part.with_seed(seed) if hasattr(part, "seed") else part for part in self.parts]
        return Pipeline(seeded)

    def at_depth(self, depth: int) -> "Pipeline":
        """Return the same pipeline with every part as it runs in a language model of `depth` layers."""
        parts = [part.at_depth(depth) for part in self.parts]
        return self if all(new is old for new, old in zip(parts, self.parts, strict=True)) else Pipeline(parts)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Pipeline is immutable; build a new one instead of setting {name}")

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.parts))
