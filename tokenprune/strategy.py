"""`PruningStrategy`, the interface of every method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast, final

import torch

from tokenprune.answer_checks import NotFiniteError, check_answers, check_form, on_host, rows_hold
from tokenprune.budget import Keep, check_keep, keep_count
from tokenprune.kernels.finite import all_finite, rough_sum
from tokenprune.kernels.precision import in_autocast, with_autocast_of_now, without_autocast
from tokenprune.tokens import FIELD_NAMES, Selection, Tokens

if TYPE_CHECKING:
    from tokenprune.pipeline import Pipeline

Site = Literal["tower", "projector", "decoder"]
PositionPolicy = Literal["original", "compact"]


class PruningStrategy(ABC):
    """A rule that decides which visual tokens of an image stay.

    A subclass is a frozen dataclass whose fields are its configuration. It writes `_select` and states facts about
    itself as class attributes. `select` is final: it checks the input, calls `_select`, and checks the answer. No state
    is written while selecting, so one instance may serve many images and threads.

    Attributes:
        name: what `parse`, the command line and result ids call it (snake_case, unique).
        paper: where the method comes from; "" for controls.
        summary: the mechanism in one clause.
        needs: names of the `Tokens` fields beyond `visual` without which it cannot run.
        uses: names of the fields that it takes when they are there.
        site: where in the model it acts: "tower", "projector" (before the language model) or "decoder".
        layer: for the site "decoder", the first layer that gets fewer tokens, counted from 0; at least 1, because the
            layer before it tells what to drop. None at the other sites, and where `at_depth` finds it.
        positions: position policy of the method's authors: "compact" renumbers the shorter prompt, "original" keeps
            the positions of the full one.
        deterministic: True when the same tokens always give the same answer.
        equivariant: True when permuting the tokens only permutes the answer (up to ties).
        merges: True when it makes new token vectors (`Selection.features`) instead of choosing among the given ones.
        extends: True when it chooses and makes further tokens (`Selection.extra`); only inside the decoder.
        before_ffn: for the site "decoder": it drops within layer `layer` - 1, between attention and feed-forward, so
            that `layer` may be the number of layers. What is left is the same as with a drop behind that layer.
        differentiable: True when a gradient can flow through the tokens that it makes (`merges`, `extends`) into what
            they are made of, with its choices held fixed. False for methods whose arithmetic torch cannot follow: their
            new tokens are constants in training, which the record of `prune` says and a warning, too.
        whole_raster: True when it needs every token of the image, so that no stage may come before it.
        ascending: True when the kept tokens enter the model in raster order.
        withdraws: True when it leaves no visual token at all. Only inside the decoder, where what was dropped has been
            read by the layers before, and only as the last stage; everything else keeps at least one token.
        keep: the budget, for strategies that have one.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    # No ClassVar below: a pipeline derives these from its stages, and some options change them.
    needs: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    site: Site = "projector"
    layer: int | None = None
    positions: PositionPolicy = "compact"
    deterministic: bool = True
    equivariant: bool = False
    merges: bool = False
    extends: bool = False
    differentiable: bool = True
    before_ffn: bool = False
    whole_raster: bool = False
    ascending: bool = True
    withdraws: bool = False
    keep: Keep

    @abstractmethod
    def _select(self, tokens: Tokens) -> Selection:
        """The method itself. `tokens` has been checked; `indices` are row numbers of `tokens`."""

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Override where several images can be handled at once; the answers must equal those of the loop."""
        return [self._select(tokens) for tokens in batch]

    def requested(self, tokens: Tokens) -> int | None:
        """Number of tokens asked for of this image, not cut at what there is; None when the method finds it itself.

        Concrete here for every strategy with a `keep`; strategies with another kind of budget override it.
        """
        return keep_count(self.keep, tokens.original)

    def foresee(self, left: int, original: int) -> int | None:
        """How many tokens an image has behind this stage, by its budget alone; None when it depends on the image.

        Args:
            left: tokens of the image that come, tokens made on the way included.
            original: number of the image's original tokens.
        """
        requested = self.requested(Tokens(torch.zeros(left, 1), total=original))
        return None if requested is None else min(requested, left)

    def at_depth(self, depth: int) -> "PruningStrategy":
        """The strategy as it runs in a language model of `depth` layers: itself, unless its layers depend on that.

        Strategies whose default layers are told for a certain model override it; the answer names every layer.

        Args:
            depth: number of decoder layers.

        Raises:
            ValueError: when there are too few layers.
        """
        del depth
        return self

    @classmethod
    def example(cls) -> "PruningStrategy":
        """An instance for the contract suite and the documentation: `keep=0.5` and defaults.

        Override it when the constructor needs more.
        """
        return cls(keep=0.5)  # type: ignore[call-arg]

    @final
    def count(self, tokens: Tokens) -> int:
        """Number of tokens to keep of this image: `requested`, cut at what there is. For use in `_select`."""
        requested = self.requested(tokens)
        return tokens.n if requested is None else min(requested, tokens.n)

    @final
    def select(self, tokens: Tokens) -> Selection:
        """Choose the tokens of one image to keep.

        Args:
            tokens: the image; must carry every field named in `needs`.

        Returns:
            The kept rows of `tokens`, ascending unless `ascending` is False.

        Raises:
            TypeError: when `tokens` is no `Tokens`.
            ValueError: when a needed field is missing, or a tensor holds NaN or infinity.
            NotFiniteError: when the method made token vectors that hold NaN or infinity; it is a ValueError, too.
            RuntimeError: when the method broke its own contract (a bug in the strategy, not in the call).
        """
        return self.select_batch([tokens])[0]

    @final
    def select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        """`select` for several images; the answers equal those of a loop over `select`.

        Args:
            batch: the images, of any sizes.

        Returns:
            One `Selection` per image, in the same order.
        """
        self._check_input(batch)
        return self._checked(batch)

    @final
    def _checked(self, batch: Sequence[Tokens]) -> list[Selection]:
        """`select_batch` for images that are known to be sound: the method, then the check of its answers."""
        selections = self._answers(batch)
        check_answers(_title(self), selections, len(batch))
        requested = [self.requested(tokens) for tokens in batch]
        for tokens, selection, wanted in zip(batch, selections, requested, strict=True):
            self._check_form(tokens, selection, wanted)
        self._check_rows(batch, selections)
        return [
            selection.stamped(wanted, tokens.n)
            for tokens, selection, wanted in zip(batch, selections, requested, strict=True)
        ]

    @final
    def _answers(self, batch: Sequence[Tokens]) -> list[Selection]:
        """The method itself, in full precision: `torch.autocast` would round the scores that decide."""
        if not batch or not in_autocast(batch[0].visual.device):
            return self._with_gradient(batch)
        device = batch[0].visual.device
        given = [
            # The projector is a part of the model and runs as the model does.
            tokens if tokens.project is None else tokens.projecting_by(with_autocast_of_now(tokens.project, device))
            for tokens in batch
        ]
        with without_autocast(device):
            return self._with_gradient(given)

    def _with_gradient(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Only values of new tokens are connected to the model that the tokens come from.

        Choosing is no differentiable step, so a method that only chooses gets plain numbers. Where a method makes
        tokens, what it computes from attached fields is recorded, and its integer choices are constants by nature.
        """
        makes = (self.merges or self.extends) and self.differentiable
        if makes and torch.is_grad_enabled() and any(tokens.attached for tokens in batch):
            return [selection.detached(notes_only=True) for selection in self._select_batch(batch)]
        with torch.no_grad():
            return self._select_batch([tokens.detached() for tokens in batch])

    def _check_input(self, batch: Sequence[Tokens]) -> None:
        values: dict[int, torch.Tensor] = {}  # by identity: the images of a prompt share its text
        names: list[str] = []
        fields_read = ("visual", *sorted((self.needs | self.uses) & FIELD_NAMES))
        for tokens in batch:
            if not isinstance(tokens, Tokens):
                raise TypeError(
                    f"{_title(self)}: select takes a Tokens, got {type(tokens).__name__}; write Tokens(visual)"
                )
            missing = sorted(name for name in self.needs if getattr(tokens, name) is None)
            if missing:
                lacking = " and ".join(f"Tokens.{name}" for name in missing)
                raise ValueError(
                    f"{_title(self)}: needs {lacking}, which {'is' if len(missing) == 1 else 'are'} None; "
                    f"pass Tokens(..., {', '.join(f'{name}=...' for name in missing)}) "
                    "or choose a strategy that does without"
                )
            for name in fields_read:
                value = getattr(tokens, name)
                if isinstance(value, torch.Tensor) and value.is_floating_point() and id(value) not in values:
                    values[id(value)] = value
                    names.append(name)
        verdicts = all_finite(list(values.values()))
        if not all(verdicts):
            bad = names[verdicts.index(False)]
            raise ValueError(f"{_title(self)}: Tokens.{bad} holds NaN or infinity; find where the model makes it")

    def _check_form(self, tokens: Tokens, selection: Selection, requested: int | None) -> None:
        """What can be checked without reading numbers from the device."""
        title = _title(self)
        check_form(title, tokens, selection)
        k = selection.kept
        if (k == 0) != self.withdraws or (requested is not None and k != min(requested, tokens.n)):
            raise RuntimeError(f"{title}: kept {k} of {tokens.n} tokens, but {requested} were asked for")
        for name, fact in (("features", "merges"), ("extra", "extends")):
            says, made = getattr(self, fact), getattr(selection, name)
            if says != (made is not None):
                raise RuntimeError(f"{title}: `{fact}` is {says} but {name} are {made is not None}")

    def _check_rows(self, batch: Sequence[Tokens], selections: Sequence[Selection]) -> None:
        """Check what takes numbers from the device, with one transfer for the whole batch.

        Indices are rows, unique, and in order where promised; `order` holds the same rows; what was made is finite.
        """
        groups: dict[tuple[int, int, torch.device, bool], list[int]] = {}
        made: list[torch.Tensor] = []
        right = True
        for i, (tokens, selection) in enumerate(zip(batch, selections, strict=True)):
            made += [x for x in (selection.features, selection.extra) if x is not None and x is not tokens.visual]
            if on_host(selection):
                right = right and rows_hold(selection, tokens.n, ascending=self.ascending)
            elif selection.kept:  # a method that withdraws the image keeps nothing
                ordered = selection.order is not None
                groups.setdefault((tokens.n, selection.kept, selection.indices.device, ordered), []).append(i)
        verdicts = [rough_sum(x).isfinite() for x in made]
        for (n, _, _, ordered), members in groups.items():
            rows = torch.stack([selections[i].indices for i in members])
            rows = rows if self.ascending else rows.sort(dim=1).values
            good = (rows[:, 0] >= 0) & (rows[:, -1] < n) & (rows[:, 1:] > rows[:, :-1]).all(1)
            verdicts.append(good.all())
            if ordered:
                picks = torch.stack([cast("torch.Tensor", selections[i].order) for i in members])
                verdicts.append((picks.sort(dim=1).values == rows).all())
        if verdicts and right:
            right = bool(torch.stack([good.to(verdicts[0].device) for good in verdicts]).all().item())
        if not right:
            self._explain(batch, selections, made)

    def _explain(self, batch: Sequence[Tokens], selections: Sequence[Selection], made: list[torch.Tensor]) -> None:
        """Raise what is wrong with these answers; nothing when only a sum of large finite numbers was not finite."""
        what = "ascending, unique and" if self.ascending else "unique and"
        for tokens, selection in zip(batch, selections, strict=True):
            kept = selection.indices.tolist()
            right = sorted(set(kept)) == (kept if self.ascending else sorted(kept))
            if not right or (kept and (min(kept) < 0 or max(kept) >= tokens.n)):
                raise RuntimeError(f"{_title(self)}: indices must be {what} in [0, {tokens.n}), got {kept[:12]}")
            if selection.order is not None and sorted(selection.order.tolist()) != sorted(kept):
                raise RuntimeError(
                    f"{_title(self)}: order must hold the rows of indices, each once, got "
                    f"{selection.order.tolist()[:12]} for {kept[:12]}"
                )
        if not all(all_finite(made)):
            raise NotFiniteError(
                f"{_title(self)}: the token vectors that it made hold NaN or infinity, though all numbers that it got "
                "are finite; they are too large to be added up in their dtype, so scale the model's features down or "
                "run it in a dtype of a larger range (bfloat16 or float32 for float16)"
            )

    def __rshift__(self, other: "PruningStrategy") -> "Pipeline":
        """`a >> b`: the pipeline that runs `a`, then `b` on what `a` kept."""
        if not isinstance(other, PruningStrategy):
            return NotImplemented
        from tokenprune.pipeline import Pipeline

        return Pipeline([self, other])

    def __repr__(self) -> str:
        """The configuration, as `parse` reads it: required fields and those that differ from their default."""
        if not is_dataclass(self):
            return f"{self.name}()"
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{self.name}({', '.join(shown)})"


def check_choice(owner: str, parameter: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError that names owner, parameter, value and the choices, unless `value` is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{owner}: {parameter} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def set_keep(strategy: PruningStrategy) -> None:
    """Check and normalise `strategy.keep`; for use in the `__post_init__` of a frozen dataclass."""
    object.__setattr__(strategy, "keep", check_keep(strategy.keep, owner=type(strategy).__name__))


def set_layer(strategy: PruningStrategy) -> None:
    """Check `strategy.layer` of a strategy for the decoder; for use in the `__post_init__` of a frozen dataclass."""
    layer: object = strategy.layer
    wanted = f"{_title(strategy)}: layer must be an int of at least 1 (the first decoder layer with fewer tokens)"
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{wanted}, got {layer!r} of type {type(layer).__name__}")
    if layer < 1:
        raise ValueError(f"{wanted}, got {layer}; to drop before the language model choose a strategy of that site")


def _title(strategy: PruningStrategy) -> str:
    return type(strategy).__name__
