r"""Budgets averaged over decoder layers, and the parameters of methods that meet them.

"192 tokens" means two things in the literature. Methods before the language model let 192 tokens *enter* it;
methods inside it give the mean over layers, $\frac1L \sum_l n_l$ with $n_l$ the visual tokens that enter layer l. A
method that drops at layer K has seen all n tokens for K layers by then, so the mean cannot fall below n K / L.

The functions count tokens that a layer really processes. SparseVLM's own figures count what is left *after* each
layer and come out lower: 192.0, 128.6 and 64.8 for its schedules, where 206.5, 145.4 and 82.3 are processed.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tokenprune.baselines.scoring import check_count
from tokenprune.core.places import InDecoder
from tokenprune.core.strategy import PruningStrategy

__all__ = [
    "fastv_keep_for",
    "fitprune_drops_for",
    "keep_for_layer_average",
    "layer_average",
    "layers_at_depth",
    "planned_average",
    "pyramiddrop_ratio_for",
    "tokens_entering",
    "tome_merges_for",
    "vtw_layer_for",
]


def tokens_entering(n: int, layers: int, stages: Sequence[tuple[int, int]]) -> list[int]:
    """Visual tokens that enter each decoder layer.

    Args:
        n: visual tokens of the image.
        layers: number of decoder layers.
        stages: (layer, tokens) pairs, ascending: from that layer on so many tokens are left.

    Raises:
        ValueError: when the layers do not ascend within 0..layers - 1.

    Examples:
        >>> tokens_entering(576, 4, [(2, 64)])
        [576, 576, 64, 64]
        >>> round(layer_average(tokens_entering(576, 32, [(3, 309), (7, 204), (16, 113)])), 1)  # SparseVLM, "192"
        206.5
    """
    places = [layer for layer, _ in stages]
    if places != sorted(set(places)) or any(not 0 <= layer < layers for layer in places):
        raise ValueError(f"tokens_entering: stages must ascend within layers 0..{layers - 1}, got {places}")
    entering, left, ahead = [], n, dict(stages)
    for layer in range(layers):
        left = ahead.get(layer, left)
        entering.append(left)
    return entering


def layers_at_depth(layers: Sequence[int], depth: int, *, of: int = 32) -> tuple[int, ...]:
    """Layers that were chosen for one model, at the same share of the depth of a shallower one.

    Shares are rounded half up, then moved as little as needed so that they ascend within 1..depth - 1. In a model that
    is as deep or deeper they stay what they are, as in the authors' programs.

    Args:
        layers: first layer of each stage, ascending, at least 1.
        depth: decoder layers of the model at hand.
        of: decoder layers of the model that the layers were chosen for.

    Raises:
        ValueError: when the model has too few layers for so many stages.

    Examples:
        >>> layers_at_depth((3, 7, 16), 32), layers_at_depth((3, 7, 16), 16), layers_at_depth((3, 7, 16), 4)
        ((3, 7, 16), (2, 4, 8), (1, 2, 3))
    """
    if depth >= of:
        return tuple(layers)
    if depth <= len(layers):
        raise ValueError(
            f"layers_at_depth: {len(layers)} stages need at least {len(layers) + 1} decoder layers, but there are "
            f"{depth}; give fewer layers by hand"
        )
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(math.floor(layer * depth / of + 0.5), scaled[-1] + 1 if scaled else 1))
    behind = depth
    for stage in reversed(range(len(scaled))):
        behind = scaled[stage] = min(scaled[stage], behind - 1)
    return tuple(scaled)


def layer_average(entering: Sequence[int]) -> float:
    """Mean over layers.

    Examples:
        >>> layer_average(tokens_entering(576, 32, [(2, 192)])), layer_average(tokens_entering(576, 32, [(15, 0)]))
        (216.0, 270.0)
    """
    return sum(entering) / len(entering)


def fastv_keep_for(average: float, *, n: int, layers: int, layer: int) -> float:
    """Tokens that a method with one cut at `layer` must keep for a layer average (FastV, DART, VTW).

    Args:
        average: the wanted mean over layers.
        n: visual tokens of the image.
        layers: number of decoder layers.
        layer: the first layer with fewer tokens.

    Returns:
        The exact number, to be rounded by the caller. DART keeps 4 more than its nominal budget, so subtract 4.

    Raises:
        ValueError: when the average is out of reach.

    Examples:
        >>> [round(fastv_keep_for(average, n=576, layers=32, layer=2), 1) for average in (192, 128, 64)]
        [166.4, 98.1, 29.9]
    """
    check_count("fastv_keep_for", "layer", layer, layers - 1, lowest=0)
    keep = (average * layers - n * layer) / (layers - layer)
    _reachable("fastv_keep_for", average, n * layer / layers, n)
    return keep


def pyramiddrop_ratio_for(average: float, *, layers: int, stage_layers: Sequence[int] = (8, 16, 24), n: int) -> float:
    r"""The ratio $\lambda$ for which shares $\lambda, \lambda^2, \dots$ at the given layers meet a layer average.

    Args:
        average: the wanted mean over layers.
        layers: number of decoder layers.
        stage_layers: first layer of each stage.
        n: visual tokens of the image.

    Raises:
        ValueError: when the average is out of reach, as 128 and 64 are for the authors' layers.

    Examples:
        >>> round(pyramiddrop_ratio_for(192, layers=32, n=576), 3)
        0.253
        >>> pyramiddrop_ratio_for(128, layers=32, n=576)
        Traceback (most recent call last):
        ValueError: pyramiddrop_ratio_for: a layer average of 128 is out of reach: it must be from 144 to 576; ...
    """
    _reachable("pyramiddrop_ratio_for", average, n * stage_layers[0] / layers, n)
    lengths = [end - start for start, end in zip((0, *stage_layers), (*stage_layers, layers), strict=True)]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = n * sum(length * middle**stage for stage, length in enumerate(lengths)) / layers
        low, high = (low, middle) if reached > average else (middle, high)
    return (low + high) / 2


def vtw_layer_for(average: float, *, n: int, layers: int) -> float:
    """The layer at which all visual tokens must leave for a layer average (VTW).

    Args:
        average: the wanted mean over layers.
        n: visual tokens of the image.
        layers: number of decoder layers.

    Returns:
        The exact number, to be rounded by the caller: other averages than n K / L cannot be met.

    Raises:
        ValueError: when the average is out of reach.

    Examples:
        >>> round(vtw_layer_for(192, n=576, layers=32), 2), vtw_layer_for(270, n=576, layers=32)
        (10.67, 15.0)
    """
    _reachable("vtw_layer_for", average, n / layers, n * (layers - 1) / layers)
    return average * layers / n


def fitprune_drops_for(average: float, profile: Sequence[float], *, n: int) -> tuple[int, ...]:
    """Drops per layer, in the proportions of a profile, with which a layer average is met as nearly as from below.

    Args:
        average: the wanted mean over layers.
        profile: tokens dropped within each decoder layer, one entry per layer: a fitted table, or any weights.
        n: visual tokens of the image; at least one is left.

    Raises:
        ValueError: when the average is out of reach of the profile.

    Examples:
        >>> fitprune_drops_for(160, (1, 2, 1, 0), n=256)
        (48, 96, 48, 0)
        >>> fitprune_drops_for(60, (1, 2, 1, 0), n=256)
        Traceback (most recent call last):
        ValueError: fitprune_drops_for: a layer average of 60 is out of reach: it must be from 64.75 to 256; ...
    """
    if not profile or min(profile) < 0 or sum(profile) == 0:
        raise ValueError(f"fitprune_drops_for: profile must be weights of at least 0, some above, got {profile!r}")

    def table(scale: float) -> list[int]:
        left = [n]
        for drop in profile:
            left.append(max(1, left[-1] - math.floor(scale * drop)))
        return left

    def reached(scale: float) -> float:
        return layer_average(table(scale)[:-1])

    low, high = 0.0, n / min(drop for drop in profile if drop > 0) + 1.0
    _reachable("fitprune_drops_for", average, reached(high), n)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) <= average else (middle, high)
    left = table(high)
    return tuple(before - after for before, after in pairwise(left))


def tome_merges_for(keep: int, *, n: int, layers: int) -> float:
    """Merges per tower layer (ToMe's r) that leave `keep` patches after `layers` layers.

    Examples:
        >>> tome_merges_for(192, n=576, layers=24), round(tome_merges_for(64, n=576, layers=23), 1)
        (16.0, 22.3)
    """
    check_count("tome_merges_for", "keep", keep, n)
    return (n - keep) / layers


def planned_average(strategy: PruningStrategy, *, n: int, layers: int) -> float:
    """Mean over decoder layers of the tokens that enter them, by the strategy's own budgets.

    Tokens that SparseVLM makes on the way are counted as well.

    Args:
        strategy: with every decoder layer named (`PruningStrategy.at_depth`).
        n: visual tokens of the image.
        layers: number of decoder layers.

    Raises:
        ValueError: when a stage finds its number of tokens itself.

    Examples:
        >>> from tokenprune import parse
        >>> planned_average(parse("greedy_repmax(keep=0.5) >> fastv(keep=64, layer=2)"), n=576, layers=32)
        78.0
        >>> round(planned_average(parse("sparsevlm(keep=110, schedule='192')"), n=576, layers=32), 1)
        206.5
        >>> planned_average(parse("vtw(layer=15)"), n=576, layers=32)
        270.0
    """
    left, cuts = n, {0: n}
    for stage in strategy.stages:
        foreseen = stage.foresee(left, n)
        if foreseen is None:
            raise ValueError(f"planned_average: {stage!r} finds the number of tokens itself; give it a budget")
        left = foreseen
        layer = stage.place.layer if isinstance(stage.place, InDecoder) else 0
        if layer < layers:  # within the last layer there is no layer left to enter
            cuts[layer] = left
    return layer_average(tokens_entering(n, layers, sorted(cuts.items())))


def keep_for_layer_average(build: Callable[[int], PruningStrategy], average: float, *, n: int, layers: int) -> int:
    """The budget with which a strategy comes nearest to a layer average; on a tie the smaller one.

    Args:
        build: from a number of tokens to the strategy, with every decoder layer named.
        average: the wanted mean over layers.
        n: visual tokens of the image.
        layers: number of decoder layers.

    Raises:
        ValueError: when the average is out of reach.

    Examples:
        >>> from tokenprune.baselines import FastV, PyramidDrop
        >>> [keep_for_layer_average(FastV, average, n=576, layers=32) for average in (192, 128, 64)]
        [166, 98, 30]
        >>> keep_for_layer_average(lambda k: PyramidDrop(k, layers=(8, 16, 24)), 128, n=576, layers=32)
        Traceback (most recent call last):
        ValueError: pyramiddrop(keep=1): a layer average of 128 is out of reach: it must be from 163.5 to 576; ...
    """
    reached = {keep: planned_average(build(keep), n=n, layers=layers) for keep in (1, n)}
    _reachable(repr(build(1)), average, reached[1], reached[n])
    low, high = 1, n  # what is reached grows with the budget
    while high - low > 1:
        middle = (low + high) // 2
        reached[middle] = planned_average(build(middle), n=n, layers=layers)
        low, high = (low, middle) if reached[middle] > average else (middle, high)
    return min((low, high), key=lambda keep: (abs(reached[keep] - average), keep))


def _reachable(owner: str, average: float, lowest: float, highest: float) -> None:
    if not lowest <= average <= highest:
        raise ValueError(
            f"{owner}: a layer average of {average:g} is out of reach: it must be from {lowest:g} to {highest:g}; "
            "drop at an earlier layer or ask for more"
        )
