"""The contract suite must catch wrong strategies: each one here breaks exactly one promise."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenprune import EQUIVARIANT, PLAIN, Choice, InDecoder, Keep, PruningStrategy, Stage, Tokens, strategy
from tokenprune.core.signals import TEXT
from tokenprune.testing import ContractError, check_strategy

BROKEN: list[tuple[type[PruningStrategy], str]] = []


def broken(name: str, message: str) -> Any:
    """Make a class a strategy whose check must fail with a message that matches."""

    def add(cls: type[Any]) -> type[Any]:
        made: type[PruningStrategy] = strategy(name, register=False)(cls)
        BROKEN.append((made, message))
        return made

    return add


class First(Stage):
    """Keeps the first k tokens: right in every respect."""

    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)))


@strategy("first", register=False)
class Right(First):
    keep: Keep


@broken("one_too_many", "asked for")
class OneTooMany(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(min(self.count(tokens) + 1, tokens.n)))


@broken("unsorted", "ascending, unique")
class Unsorted(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)).flip(0))


@broken("repeats", "ascending, unique")
class Repeats(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)) // 2)


@broken("out_of_range", "ascending, unique")
class OutOfRange(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens)) + tokens.n)


@broken("wrong_dtype", "int64")
class WrongDtype(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(self.count(tokens), dtype=torch.int32))


@broken("secretly_random", "two calls on the same tokens differ|global random generator")
class SecretlyRandom(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.randperm(tokens.n)[: self.count(tokens)].sort().values)


@broken("says_equivariant", "permutation changes")
class SaysEquivariant(First):
    keep: Keep
    promises = EQUIVARIANT


@broken("mutates", "wrote into Tokens.visual|differ")
class Mutates(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        tokens.visual.detach().mul_(2)
        return super().choose(tokens)


@broken("batch_differs", "differs from a loop")
class BatchDiffers(First):
    keep: Keep

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        results = [self.choose(tokens) for tokens in batch]
        if len(results) > 1:
            last = torch.arange(batch[0].n - results[0].indices.shape[0], batch[0].n)
            results[0] = replace(results[0], indices=last)
        return results


@broken("writes_state", "wrote state")
class WritesState(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        object.__setattr__(self, "_last", tokens.n)
        return super().choose(tokens)


@broken("lying_text", "parse")
class LyingText(First):
    keep: Keep

    def __repr__(self) -> str:
        return "lying_text(keep=1)"


@broken("merges_always", "keep-all changes")
class MergesAlways(First):
    keep: Keep
    yields = "merged"

    def choose(self, tokens: Tokens) -> Choice:
        mean = tokens.visual.mean(0).expand(self.count(tokens), -1).contiguous()
        return Choice(torch.arange(self.count(tokens)), features=mean)


@broken("unchecked", "keep")
class Unchecked(First):
    keep: int | float

    def __post_init__(self) -> None:
        pass


@broken("share_of_what_is_left", "base of every share|asked of|asked for|original")
class ShareOfWhatIsLeft(First):
    keep: Keep

    def choose(self, tokens: Tokens) -> Choice:
        alone = Tokens(tokens.visual)
        return Choice(torch.arange(self.count(alone)))


@broken("keeps_float64_only", "features must be torch.float32")
class KeepsFloat64Only(First):
    keep: Keep
    yields = "merged"

    def choose(self, tokens: Tokens) -> Choice:
        indices = torch.arange(self.count(tokens))
        return Choice(indices, features=tokens.visual[indices].double())


@broken("promises_nonsense", "promises .*fast")
class PromisesNonsense(First):
    keep: Keep
    promises = frozenset({"fast", "ascending"})  # type: ignore[arg-type]


@broken("needs_words", "no Signal objects")
class NeedsWords(First):
    keep: Keep
    needs = ("text",)  # type: ignore[assignment]


@broken("empties_early", "stages inside the decoder|kept 0")
class EmptiesEarly(First):
    keep: Keep
    yields = "nothing"

    def requested(self, tokens: Tokens) -> int | None:
        return 0

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(0))


@broken("carries_a_gradient", "scores carry a gradient")
class CarriesAGradient(First):
    keep: Keep
    yields = "extended"
    place = InDecoder(2)

    def _answers(self, batch: Sequence[Tokens]) -> list[Choice]:
        kept = [torch.arange(self.count(tokens)) for tokens in batch]
        return [Choice(k, extra=t.visual[:0], scores=t.visual.sum(1)) for k, t in zip(kept, batch, strict=True)]


@broken("merges_detached", "a gradient is promised but features carry no gradient")
class MergesDetached(First):
    keep: Keep
    yields = "merged"

    def choose(self, tokens: Tokens) -> Choice:
        indices = torch.arange(self.count(tokens))
        return Choice(indices, features=tokens.visual.detach()[indices])


@broken("denies_its_gradient", "a gradient is not promised but features carry a gradient")
class DeniesItsGradient(First):
    keep: Keep
    yields = "merged"
    promises = PLAIN - {"differentiable"}

    def _answers(self, batch: Sequence[Tokens]) -> list[Choice]:
        kept = [torch.arange(self.count(tokens)) for tokens in batch]
        return [Choice(indices, features=t.visual[indices]) for indices, t in zip(kept, batch, strict=True)]


def test_the_right_one_passes() -> None:
    check_strategy(Right(0.5))


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_strategy_is_caught(cls: Callable[[float], PruningStrategy], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_strategy(cls(0.5))


def test_missing_signal_must_be_named() -> None:
    @strategy("swallows", register=False)
    class Swallows(First):
        keep: Keep
        needs = (TEXT,)

        def choose(self, tokens: Tokens) -> Choice:
            raise ValueError("something is wrong")

    with pytest.raises(ContractError, match="something is wrong"):
        check_strategy(Swallows(0.5))


def test_what_is_final_cannot_be_overridden() -> None:
    class OverridesSelect(First):
        keep: Keep

        def select(self, tokens: Tokens) -> Any:  # type: ignore[misc]
            return None

    with pytest.raises(TypeError, match="OverridesSelect: overrides select, which is final"):
        strategy("overrides_select", register=False)(OverridesSelect)
