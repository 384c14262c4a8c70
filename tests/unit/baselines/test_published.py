"""The published methods' strategies: each is its core wired to the right signals, and says what it cannot do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokenprune import GreedyRepMax, Pipeline, PruningStrategy, Selection, Tokens, parse
from tokenprune.baselines import (
    TRIM,
    CDPruner,
    DivPrune,
    FasterVLM,
    HiRED,
    PruMerge,
    PruMergePlus,
    VisionZip,
    VisPruner,
)
from tokenprune.baselines.cdpruner import cdpruner, conditional_kernel, greedy_map
from tokenprune.baselines.divprune import divprune
from tokenprune.baselines.fastervlm import fastervlm
from tokenprune.baselines.prumerge import prumerge
from tokenprune.baselines.scoring import outlier_count
from tokenprune.baselines.trim import trim, with_mean_of_rest
from tokenprune.baselines.visionzip import visionzip, visionzip_budget
from tokenprune.baselines.vispruner import vispruner
from tokenprune.testing import check_strategy, random_tokens

TOKENS = random_tokens(8, 8, seed=5)
ATTENTION, STATES, KEYS = TOKENS.cls_attention, TOKENS.vision_states, TOKENS.vision_keys
VARIANTS: list[PruningStrategy] = [
    CDPruner(0.5, official=True),
    DivPrune(0.5, official=True),
    PruMerge(0.5),
    PruMergePlus(0.5),
    TRIM(0.5),
    TRIM(0.25, plus=True),
    TRIM(plus=True),
    VisPruner(0.5, important_ratio=0.75),
    VisPruner(0.3, important_ratio=0),
    VisionZip(0.5) >> GreedyRepMax(4),
    TRIM(0.5, plus=True) >> DivPrune(3),
    DivPrune(0.8) >> VisPruner(0.5) >> VisionZip(0.25),
    PruMerge() >> GreedyRepMax(2),
]


def given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


@pytest.mark.parametrize("strategy", VARIANTS, ids=repr)
def test_options_and_mixtures_keep_the_contract(strategy: PruningStrategy) -> None:
    check_strategy(strategy)


def kept(selection: Selection) -> list[int]:
    return selection.indices.tolist()


def test_selections_are_those_of_the_cores() -> None:
    attention, states = given(ATTENTION)[None], given(STATES)[None]
    picks = divprune(TOKENS.visual, 9)
    assert given(DivPrune(9).select(TOKENS).order).tolist() == picks.tolist()
    assert kept(FasterVLM(9).select(TOKENS)) == fastervlm(attention, 9)[0].tolist()
    assert kept(HiRED(9).select(TOKENS)) == fastervlm(attention, 9)[0].tolist()
    expected = vispruner(attention, states, 9, important_ratio=0.75)[0].tolist()
    assert kept(VisPruner(9, important_ratio=0.75).select(TOKENS)) == expected
    clip, text = given(TOKENS.clip_visual), given(TOKENS.clip_text)
    expected = cdpruner(TOKENS.visual[None], clip[None], text, 9)[0].tolist()
    assert given(CDPruner(9).select(TOKENS).order).tolist() == expected
    assert kept(TRIM(9).select(TOKENS)) == trim(clip, text.mean(0), ratio=9 / 64).kept_sorted.tolist()
    assert kept(TRIM().select(TOKENS)) == trim(clip, text.mean(0)).kept_sorted.tolist()


def test_visionzip_merges_before_the_projector() -> None:
    states = torch.cat([given(TOKENS.vision_cls), given(STATES)])
    keys = torch.cat([torch.zeros_like(given(KEYS)[:1]), given(KEYS)])
    dominant, contextual = visionzip_budget(20)
    made = visionzip(given(ATTENTION)[None], states[None], keys[None], dominant, contextual)
    selection = VisionZip(20).select(TOKENS)
    torch.testing.assert_close(given(selection.features), torch.tanh(made.out_tokens[0]))
    # CLS first, at the place of a patch that is in no other row; then patches in raster order, then targets.
    patches = selection.indices[1:dominant]
    assert patches.tolist() == sorted(made.dominant_index_with_cls[0, 1:].tolist()[i] - 1 for i in range(dominant - 1))
    assert selection.indices[dominant:].tolist() == made.contextual_index[0].tolist()
    torch.testing.assert_close(given(selection.features)[1:dominant], torch.tanh(given(STATES)[patches]))
    torch.testing.assert_close(given(selection.features)[0], torch.tanh(given(TOKENS.vision_cls)[0]))


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_merges_before_the_projector(plus: bool) -> None:
    tokens = random_tokens(24, 24, seed=3)
    keys, cls = given(tokens.vision_last_keys), given(tokens.vision_last_cls)
    made = prumerge(
        torch.cat([given(tokens.vision_cls), given(tokens.vision_states)])[None],
        cls[:1],
        torch.cat([cls[1:], keys])[None],
        plus=plus,
    )[0]
    selection = (PruMergePlus() if plus else PruMerge()).select(tokens)
    torch.testing.assert_close(given(selection.features), torch.tanh(made.out_tokens))
    assert selection.indices[:-1].tolist() == made.centres.tolist()
    assert selection.indices[-1] not in selection.indices[:-1]
    assert selection.requested is None
    # With a budget: the same centres by attention, one row for the rest.
    few = PruMerge(9).select(tokens)
    weights_order = prumerge(
        given(tokens.vision_states).new_zeros(1, 577, 16), cls[:1], torch.cat([cls[1:], keys])[None], ratio=8 / 576
    )[0].centres
    assert few.indices[:8].tolist() == weights_order.tolist()


@pytest.mark.parametrize("keep", [1, 2, 7, 8, 63, 64, 65])
def test_prumerge_plus_meets_any_budget(keep: int) -> None:
    selection = PruMergePlus(keep).select(TOKENS)
    assert selection.kept == min(keep, 64)
    assert len(set(kept(selection))) == selection.kept


def test_trim_plus_keeps_the_mean_of_the_rest() -> None:
    selection = TRIM(9, plus=True).select(TOKENS)
    patches = selection.indices[:8]
    assert patches.tolist() == kept(TRIM(8).select(TOKENS))
    torch.testing.assert_close(given(selection.features)[:8], TOKENS.visual[patches])
    expected = torch.tanh(with_mean_of_rest(given(STATES), patches)[-1])
    torch.testing.assert_close(given(selection.features)[8], expected)
    found = TRIM(plus=True).select(TOKENS)
    assert found.kept == max(1, outlier_count(given(TRIM().select(TOKENS).scores))) + 1


def test_official_switches_are_about_degenerate_images() -> None:
    same = Tokens(torch.ones(10, 4), clip_visual=torch.ones(10, 3), clip_text=torch.ones(1, 3))
    assert kept(DivPrune(5).select(same)) == [0, 1, 2, 3, 4]
    assert kept(DivPrune(5, official=True).select(same)) == [0]
    assert CDPruner(5).select(same).kept == 5
    assert CDPruner(5, official=True).select(same).kept == 2
    for strategy in (DivPrune(9), CDPruner(9)):
        official = parse(repr(strategy).replace(")", ", official=True)"))
        assert kept(official.select(random_tokens(8, 8, width=40))) == kept(
            strategy.select(random_tokens(8, 8, width=40))
        )


def test_zero_tokens_do_no_harm() -> None:
    blank = torch.zeros(6, 4)
    assert DivPrune(3).select(Tokens(blank)).kept == 3
    assert CDPruner(3).select(Tokens(blank, clip_visual=blank, clip_text=blank[:1])).kept == 3


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: parse("prumerge('half')"), ("PruMerge", "keep", "'half'")),
        (lambda: parse("prumerge_plus(None)"), ("PruMergePlus", "keep", "None")),
        (lambda: TRIM(0), ("TRIM", "keep", "0")),
        (lambda: VisPruner(8, important_ratio=2), ("VisPruner", "important_ratio", "2")),
        (lambda: parse("vispruner(8, important_ratio='half')"), ("VisPruner", "important_ratio", "'half'")),
        (lambda: VisPruner(8, important_ratio=True), ("VisPruner", "important_ratio", "True")),
        (lambda: Pipeline([DivPrune(8), PruMerge()]), ("prumerge", "complete raster")),
        (lambda: Pipeline([VisionZip(8), FasterVLM(4)]), ("fastervlm", "cls_attention", "visionzip")),
        (lambda: PruMerge(4).select(TOKENS.take(torch.arange(9))), ("PruMerge", "9 of 64", "first")),
        (lambda: CDPruner(4).select(Tokens(torch.ones(6, 4))), ("CDPruner", "clip_text")),
        (lambda: VisionZip(4).select(Tokens(torch.ones(6, 4))), ("VisionZip", "cls_attention")),
    ],
)
def test_errors_name_the_culprit(build: Callable[[], object], words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        build()
    assert [word for word in words if word not in str(caught.value)] == []


def test_tokens_check_the_new_signals() -> None:
    x = torch.ones(6, 4)
    for bad, word in (
        ({"vision_cls": torch.ones(2, 4)}, "vision_cls"),
        ({"vision_states": x, "vision_cls": torch.ones(1, 3)}, "vision_cls"),
        ({"vision_last_cls": torch.ones(1, 4)}, "vision_last_cls"),
        ({"clip_visual": torch.ones(5, 4)}, "clip_visual"),
        ({"clip_visual": x, "clip_text": torch.ones(1, 3)}, "clip_text"),
        ({"clip_text": torch.ones(4)}, "clip_text"),
    ):
        with pytest.raises(ValueError, match=word):
            Tokens(x, **bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="project"):
        Tokens(x, project=3)
    assert Tokens(x, clip_visual=x).take(torch.tensor([1, 2])).n == 2


def test_the_kernel_of_cdpruner_gives_its_picks() -> None:
    torch.manual_seed(0)
    for n, k in ((5, 3), (40, 12)):
        features, embeds, text = torch.randn(n, 16), torch.randn(n, 8), torch.randn(2, 8)
        kernel = conditional_kernel(features.double(), embeds.double(), text.double())
        picks = cdpruner(features[None], embeds[None], text, k)
        assert greedy_map(kernel[None], k).tolist() == picks.tolist()
