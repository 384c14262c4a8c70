"""The contract suite must catch wrong strategies: each one here breaks exactly one promise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from tokenprune import PruningStrategy, Selection, Tokens
from tokenprune.strategy import set_keep
from tokenprune.testing import ContractError, check_strategy

BROKEN: list[tuple[type[PruningStrategy], str]] = []


def broken(message: str) -> Any:
    """Register a class whose check must fail with a message that matches."""

    def add(cls: type[PruningStrategy]) -> type[PruningStrategy]:
        BROKEN.append((cls, message))
        return cls

    return add


@dataclass(frozen=True, repr=False)
class First(PruningStrategy):
    """Keeps the first k tokens: right in every respect."""

    name: ClassVar[str] = "first"
    keep: int | float

    def __post_init__(self) -> None:
        set_keep(self)

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens)), total=tokens.n)


@broken("asked for")
class OneTooMany(First):
    name = "one_too_many"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(min(self.count(tokens) + 1, tokens.n)), total=tokens.n)


@broken("ascending, unique")
class Unsorted(First):
    name = "unsorted"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens)).flip(0), total=tokens.n)


@broken("ascending, unique")
class Repeats(First):
    name = "repeats"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens)) // 2, total=tokens.n)


@broken("ascending, unique")
class OutOfRange(First):
    name = "out_of_range"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens)) + tokens.n, total=tokens.n)


@broken("int64")
class WrongDtype(First):
    name = "wrong_dtype"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.arange(self.count(tokens), dtype=torch.int32), total=tokens.n)


@broken("two calls on the same tokens differ|global random generator")
class SecretlyRandom(First):
    name = "secretly_random"

    def _select(self, tokens: Tokens) -> Selection:
        return Selection(indices=torch.randperm(tokens.n)[: self.count(tokens)].sort().values, total=tokens.n)


@broken("permutation changes")
class SaysEquivariant(First):
    name = "says_equivariant"
    equivariant = True


@broken("wrote into Tokens.visual|differ")
class Mutates(First):
    name = "mutates"

    def _select(self, tokens: Tokens) -> Selection:
        tokens.visual.detach().mul_(2)
        return super()._select(tokens)


@broken("differs from a loop")
class BatchDiffers(First):
    name = "batch_differs"

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        results = [self._select(tokens) for tokens in batch]
        if len(results) > 1:
            last = torch.arange(batch[0].n - results[0].kept, batch[0].n)
            results[0] = replace(results[0], indices=last)
        return results


@broken("wrote state")
class WritesState(First):
    name = "writes_state"

    def _select(self, tokens: Tokens) -> Selection:
        object.__setattr__(self, "_last", tokens.n)
        return super()._select(tokens)


@broken("parse")
class LyingText(First):
    name = "lying_text"

    def __repr__(self) -> str:
        return "lying_text(keep=1)"


@broken("keep-all changes")
class MergesAlways(First):
    name = "merges_always"
    merges = True

    def _select(self, tokens: Tokens) -> Selection:
        mean = tokens.visual.mean(0).expand(self.count(tokens), -1).contiguous()
        return Selection(indices=torch.arange(self.count(tokens)), total=tokens.n, features=mean)


@broken("keep")
@dataclass(frozen=True, repr=False)
class Unchecked(First):
    name: ClassVar[str] = "unchecked"

    def __post_init__(self) -> None:
        pass


@broken("base of every share|asked of|asked for|original")
class ShareOfWhatIsLeft(First):
    name = "share_of_what_is_left"

    def _select(self, tokens: Tokens) -> Selection:
        alone = Tokens(tokens.visual)
        return Selection(indices=torch.arange(self.count(alone)), total=tokens.n)


@broken("overrides select")
class OverridesSelect(First):
    name = "overrides_select"

    def select(self, tokens: Tokens) -> Selection:  # type: ignore[misc]
        return self._select(tokens)


@broken("features must be torch.float32")
class KeepsFloat64Only(First):
    name = "keeps_float64_only"
    merges = True

    def _select(self, tokens: Tokens) -> Selection:
        indices = torch.arange(self.count(tokens))
        return Selection(indices=indices, total=tokens.n, features=tokens.visual[indices].double())


@broken("`differentiable` is True but features carry no gradient")
class MergesDetached(First):
    name = "merges_detached"
    merges = True

    def _select(self, tokens: Tokens) -> Selection:
        indices = torch.arange(self.count(tokens))
        return Selection(indices=indices, total=tokens.n, features=tokens.visual.detach()[indices])


@broken("`differentiable` is False but features carry a gradient")
class DeniesItsGradient(MergesDetached):
    name = "denies_its_gradient"
    differentiable = False

    def _answers(self, batch: Sequence[Tokens]) -> list[Selection]:  # type: ignore[misc]
        plain = [self._select(tokens) for tokens in batch]
        return [replace(s, features=t.visual[s.indices]) for s, t in zip(plain, batch, strict=True)]


def test_the_right_one_passes() -> None:
    check_strategy(First(0.5))


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_strategy_is_caught(cls: type[First], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_strategy(cls(0.5))


def test_missing_signal_must_be_named() -> None:
    class Swallows(First):
        name = "swallows"
        needs = frozenset({"text"})

        def _select(self, tokens: Tokens) -> Selection:
            raise ValueError("something is wrong")

    with pytest.raises(ContractError, match="something is wrong"):
        check_strategy(Swallows(0.5))
