"""`check_strategy`: the contract that every strategy keeps, as a suite that third parties run on theirs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch

from tokenprune.core.places import InDecoder, Place
from tokenprune.core.selection import Selection
from tokenprune.core.signals import FIELDS, TEXT, WHOLE_IMAGE, Signal
from tokenprune.core.strategy import EQUIVARIANT, Promise, PruningStrategy, Stage
from tokenprune.core.text import parse
from tokenprune.core.tokens import Tokens
from tokenprune.testing.random_tokens import random_tokens

FIELD = "keep"


class ContractError(AssertionError):
    """A strategy breaks the contract; the message says which part and how."""


def check_strategy(strategy: PruningStrategy) -> None:
    """Check that a strategy keeps the contract of `PruningStrategy`.

    Checked: the facts on the class; the budget is met exactly (int, share, more than there is, one token); indices are
    int64, unique, in range, ascending where it says so; keep-all is the identity; the same answer twice where it says
    deterministic; permutation equivariance where it says so; a batch equals the loop; no input is mutated, no state
    written, no global random state used; new tokens carry a gradient unless it says that they cannot; dtype and device
    are kept in float16, bfloat16, float32 and float64; a subset of an image is accepted; bad budgets and bad tokens
    raise errors that name the culprit; the instance is immutable, hashable, and `parse(repr(strategy)) == strategy`.

    Args:
        strategy: an instance; strategies with a `keep` field are also checked with other budgets.

    Raises:
        ContractError: naming the first broken part.

    Examples:
        >>> from tokenprune.baselines import UniformGrid
        >>> check_strategy(UniformGrid(keep=0.25))
    """
    for check in CHECKS:
        try:
            check(strategy)
        except ContractError:
            raise
        except Exception as error:
            part = (check.__doc__ or check.__name__).strip().rstrip(".")
            raise ContractError(f"{strategy!r}: {part}: raised {type(error).__name__}: {error}") from error


def _require(condition: bool, strategy: PruningStrategy, message: str) -> None:
    if not condition:
        raise ContractError(f"{strategy!r}: {message}")


def _variants(strategy: PruningStrategy, keeps: Iterable[int | float]) -> list[PruningStrategy]:
    """The strategy with other budgets, where it has a `keep` field."""
    if is_dataclass(strategy) and any(field.name == "keep" for field in fields(strategy)):
        return [strategy.with_keep(keep) for keep in keeps]
    return [strategy]


def _promises(strategy: PruningStrategy, promise: Promise) -> bool:
    """Tell whether every stage promises it."""
    return promise in strategy.promises


def _empties(strategy: PruningStrategy) -> bool:
    return strategy.yields == "nothing"


def check_facts(strategy: PruningStrategy) -> None:
    """What the stages say of themselves is of the right kind."""
    name = type(strategy).__dict__.get("name")
    _require(
        isinstance(name, str) and name.isidentifier() and name == name.lower(),
        strategy,
        f"name must be snake_case, got {name!r}",
    )
    for stage in strategy.stages:
        strangers = [need for need in stage.needs if not isinstance(need, Signal)]
        _require(not strangers, strategy, f"needs {strangers}, which are no Signal objects")
        place, yields = stage.place, stage.yields
        _require(isinstance(place, Place), strategy, f"place is {place!r}; write BeforeDecoder() or InDecoder(layer)")
        _require(yields in ("subset", "merged", "extended", "nothing"), strategy, f"yields {yields!r}")
        inside = yields not in ("extended", "nothing") or isinstance(place, InDecoder)
        _require(inside, strategy, f"yields {yields!r}, which is for stages inside the decoder")
        unknown = sorted(set(stage.promises) - EQUIVARIANT)
        _require(not unknown, strategy, f"promises {unknown}; it can promise {sorted(EQUIVARIANT)}")
    for final, owner in (("select", PruningStrategy), ("select_batch", PruningStrategy), ("count", Stage)):
        same = not hasattr(strategy, final) or getattr(type(strategy), final) is getattr(owner, final)
        _require(same, strategy, f"overrides {final}, which is final; write choose, choose_batch or score")


def check_text_form(strategy: PruningStrategy) -> None:
    """`parse(repr(s)) == s`, and equal strategies have equal hashes."""
    known = {stage.name: type(stage) for stage in [*strategy.stages, strategy]}
    again = parse(repr(strategy), known=known)
    _require(again == strategy, strategy, f"parse(repr(s)) gives {again!r}, which differs")
    _require(hash(again) == hash(strategy), strategy, "equal strategies must have equal hashes")


def check_immutable(strategy: PruningStrategy) -> None:
    """Setting an attribute raises, and selecting writes no state."""
    try:
        setattr(strategy, FIELD, 0.25)
    except (FrozenInstanceError, AttributeError):
        pass
    else:
        raise ContractError(f"{strategy!r}: its attributes can be set; make it a frozen dataclass")
    before = dict(vars(strategy))
    for tokens in (random_tokens(), random_tokens(3, 4)):
        strategy.select(tokens)
    _require(dict(vars(strategy)) == before, strategy, "select wrote state on the instance")


def check_budget(strategy: PruningStrategy) -> None:
    """The budget is met exactly, with indices that are unique, in range and in the promised order."""
    for tokens in (random_tokens(), random_tokens(1, 1), random_tokens(1, 7), random_tokens(5, 3, seed=4)):
        for variant in _variants(strategy, (1, 2, 5, tokens.n, tokens.n + 3, 0.001, 1 / 3, 0.5, 1.0)):
            selection = variant.select(tokens)
            _check_selection(variant, tokens, selection)


def _check_selection(strategy: PruningStrategy, tokens: Tokens, selection: Selection) -> None:
    wanted = strategy.requested(tokens)
    kept = selection.indices.tolist()
    _require(
        wanted is None or len(kept) == min(wanted, tokens.n),
        strategy,
        f"kept {len(kept)}, {wanted} asked of {tokens.n}",
    )
    _require(len(set(kept)) == len(kept), strategy, f"indices repeat: {kept}")
    _require(not _promises(strategy, "ascending") or kept == sorted(kept), strategy, f"indices do not ascend: {kept}")
    _require(bool(kept) != _empties(strategy), strategy, f"yields {strategy.yields!r}, but {len(kept)} stay")
    _require(all(0 <= index < tokens.n for index in kept), strategy, f"indices out of range: {kept}")
    order = selection.order
    _require(
        order is None or sorted(order.tolist()) == sorted(kept), strategy, "`order` holds other rows than `indices`"
    )
    _require(selection.clamped == (wanted is not None and wanted > tokens.n), strategy, "`clamped` is wrong")


def check_keep_all(strategy: PruningStrategy) -> None:
    """Keeping everything is the identity."""
    for tokens in (random_tokens(), random_tokens(3, 5, dtype=torch.bfloat16)):
        for variant in _variants(strategy, (1.0, tokens.n, tokens.n + 1)):
            if (variant.requested(tokens) or 0) < tokens.n:
                continue
            selection = variant.select(tokens)
            _require(selection.indices.tolist() == list(range(tokens.n)), variant, "keep-all is not the identity")
            same = selection.features is None or torch.equal(selection.features, tokens.visual)
            _require(same, variant, "keep-all changes the token vectors")
            _require(selection.extra is None or not len(selection.extra), variant, "keep-all makes further tokens")


def check_deterministic(strategy: PruningStrategy) -> None:
    """The same tokens give the same answer, and the global random state is left alone."""
    for tokens in (random_tokens(), random_tokens(7, 9, seed=1)):
        state = torch.get_rng_state()
        first = strategy.select(tokens)
        _require(torch.equal(state, torch.get_rng_state()), strategy, "select uses torch's global random generator")
        if _promises(strategy, "deterministic"):
            for _ in range(3):
                _require(_same(first, strategy.select(tokens)), strategy, "two calls on the same tokens differ")


def check_equivariant(strategy: PruningStrategy) -> None:
    """Permuting the tokens permutes the answer, where the strategy says so."""
    if not _promises(strategy, "equivariant"):
        return
    for seed in range(3):
        tokens = random_tokens(seed=seed)
        shuffle = torch.randperm(tokens.n, generator=torch.Generator().manual_seed(seed))
        signals = {
            signal: value if signal.token_axis is None else value.index_select(signal.token_axis, shuffle)
            for signal, value in tokens.signals.items()
        }
        moved = strategy.select(replace(tokens, visual=tokens.visual[shuffle], signals=signals)).indices
        expected = sorted(strategy.select(tokens).indices.tolist())
        _require(
            sorted(shuffle[moved].tolist()) == expected,
            strategy,
            "says equivariant, but a permutation changes what is kept",
        )


def check_batch(strategy: PruningStrategy) -> None:
    """A batch gives the answers of a loop, for images of equal and of different sizes, and an empty batch nothing."""
    images = [random_tokens(seed=seed) for seed in range(3)]
    images += [random_tokens(5, 3, seed=7), random_tokens(1, 1, seed=8), random_tokens(4, 9, seed=9)]
    alone = [strategy.select(tokens) for tokens in images]
    for batch, expected in ((images, alone), (images[::-1], alone[::-1]), (images[:2], alone[:2])):
        together = strategy.select_batch(batch)
        same = len(together) == len(batch) and all(map(_same, expected, together))
        _require(same, strategy, "select_batch differs from a loop over select")
    _require(strategy.select_batch([]) == [], strategy, "an empty batch must give an empty list")


def check_inputs_untouched(strategy: PruningStrategy) -> None:
    """No input tensor is written to, also when tensors are strided or require gradients."""
    tokens = random_tokens()
    strided = replace(tokens, visual=torch.stack([tokens.visual, tokens.visual], -1)[..., 0].requires_grad_())
    for given in (tokens, strided):
        tensors = {name: value for name, value in _everything(given).items() if isinstance(value, torch.Tensor)}
        copies = {name: value.clone() for name, value in tensors.items()}
        selection = strategy.select(given)
        for name, copy in copies.items():
            _require(torch.equal(copy, tensors[name]), strategy, f"select wrote into Tokens.{name}")
        _require(_same(selection, strategy.select(tokens)), strategy, "strides or requires_grad change the answer")


def check_gradient(strategy: PruningStrategy) -> None:
    """New tokens carry a gradient into what they are made of, unless the strategy does not promise it."""
    plain = random_tokens()
    attached = replace(
        plain,
        visual=_attached(plain.visual),
        text=_attached(plain.text),
        signals={signal: _attached(value) for signal, value in plain.signals.items()},
    )
    for variant in [strategy, *_variants(strategy, (3,))]:
        selection = variant.select(attached)
        _require(_same(selection, variant.select(plain)), variant, "requires_grad changes the answer")
        promised = "differentiable" in variant.promises
        for name in ("features", "extra"):
            made = getattr(selection, name)
            if made is not None and made.numel():
                says, carry = "promised" if promised else "not promised", "a" if made.requires_grad else "no"
                message = f"a gradient is {says} but {name} carry {carry} gradient"
                _require(made.requires_grad == promised, variant, message)
        for name in ("scores", "sizes"):
            note = getattr(selection, name)
            _require(note is None or not note.requires_grad, variant, f"{name} carry a gradient")
        with torch.no_grad():
            quiet = variant.select(attached)
        tensors = [tensor for tensor in vars(quiet).values() if isinstance(tensor, torch.Tensor)]
        _require(not any(tensor.requires_grad for tensor in tensors), variant, "a gradient is carried under no_grad")


def _attached(value: Any) -> Any:  # noqa: ANN401
    numbers = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.clone().requires_grad_() if numbers else value


def _everything(tokens: Tokens) -> dict[str, Any]:
    """All that is known of an image, by name."""
    parts = {"visual": tokens.visual, "text": tokens.text, "question": tokens.question, "index": tokens.index}
    return parts | {signal.name: value for signal, value in tokens.signals.items()}


def check_dtypes(strategy: PruningStrategy) -> None:
    """Every floating dtype works; indices are int64, features keep the dtype."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tokens = random_tokens(dtype=dtype)
        selection = strategy.select(tokens)
        _check_selection(strategy, tokens, selection)
        _require(selection.indices.dtype == torch.int64, strategy, f"indices are {selection.indices.dtype}")
        if selection.features is not None:
            _require(
                selection.features.dtype == dtype,
                strategy,
                f"features are {selection.features.dtype} for {dtype} tokens",
            )


def check_subset(strategy: PruningStrategy) -> None:
    """A subset of an image is accepted, and its budget refers to the original count."""
    if WHOLE_IMAGE in strategy.needs:
        return
    tokens = random_tokens()
    subset = tokens.take(torch.arange(1, tokens.n, 2))
    for variant in _variants(strategy, (3, 0.25, 0.9)):
        _check_selection(variant, subset, variant.select(subset))


def check_bad_tokens(strategy: PruningStrategy) -> None:
    """NaN, infinity and missing fields raise a ValueError that names the field."""
    tokens = random_tokens()
    for value in (math.nan, math.inf):
        for name, given in _read(strategy, tokens).items():
            if not isinstance(given, torch.Tensor) or not given.is_floating_point():
                continue
            bad = given.clone()
            bad[..., -1] = value
            _expect_error(strategy, name, partial(_select_changed, strategy, tokens, name, bad))
    for signal in strategy.needs:
        if signal.required and signal is not WHOLE_IMAGE:
            _expect_error(strategy, signal.name, partial(_select_changed, strategy, tokens, signal.name, None))


def _read(strategy: PruningStrategy, tokens: Tokens) -> dict[str, Any]:
    return {"visual": tokens.visual} | {signal.name: tokens[signal] for signal in strategy.needs}


def _select_changed(strategy: PruningStrategy, tokens: Tokens, name: str, value: object) -> Selection:
    if name == TEXT.name and value is None:
        return strategy.select(replace(tokens, text=None, question=None))
    if name == "visual" or name in {signal.name for signal in FIELDS}:
        return strategy.select(replace(tokens, **{name: value}))  # type: ignore[arg-type]
    signal = next(signal for signal in strategy.needs if signal.name == name)
    return strategy.select(tokens.knowing({signal: value}))


def check_bad_keep(strategy: PruningStrategy) -> None:
    """A bad budget is refused at construction with the class, the parameter and the value."""
    bad: tuple[Any, ...] = (0, -3, 0.0, -0.5, 1.5, math.nan, math.inf, True, "64", None)
    if _variants(strategy, ()) != []:
        return  # no `keep` of its own
    for keep in bad:
        _expect_error(strategy, "keep", partial(_variants, strategy, [keep]), type(strategy).__name__, repr(keep))


def _expect_error(strategy: PruningStrategy, name: str, call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except (ValueError, TypeError) as error:
        missing = [word for word in (name, *words) if word not in str(error)]
        _require(not missing, strategy, f"the error must name {', '.join(missing)}; it says: {error}")
    else:
        raise ContractError(f"{strategy!r}: bad {name} {' '.join(words[1:])} raised no error".replace("  ", " "))


def _same(a: Selection, b: Selection) -> bool:
    pairs = ((a.indices, b.indices), (a.features, b.features), (a.extra, b.extra))
    return all((x is None) == (y is None) and (x is None or y is None or torch.equal(x, y)) for x, y in pairs)


CHECKS: tuple[Callable[[PruningStrategy], None], ...] = (
    check_facts,
    check_immutable,  # before all that call `select`, after which state would no longer be new
    check_text_form,
    check_budget,
    check_keep_all,
    check_deterministic,
    check_equivariant,
    check_batch,
    check_inputs_untouched,
    check_gradient,
    check_dtypes,
    check_subset,
    check_bad_tokens,
    check_bad_keep,
)
