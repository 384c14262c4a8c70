"""SparseVLM and strategies that make tokens inside the decoder, against the hand-made language model."""

import pytest
import torch
from torch import Tensor

from tests.models.decoder_oracle import Answer, Attended, Rule, Stage, View, check_decoder, most_attended
from tests.models.oracle import BATCHES as ALL
from tests.models.test_decoder_generate import LAYERS, number, tiny
from tests.parity import references
from tokenprune import Choice, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import DART, FastV, FitPruneStage, Random, SparseVLM, SparseVLMStage
from tokenprune.core.places import Positions, order_of
from tokenprune.core.signals import Signal, signal_named
from tokenprune.models import UnsupportedError

# Each value once; the full product is run by `make test-matrix`.
MATRIX = [
    pytest.param("sdpa", "dynamic"),
    pytest.param("eager", "static"),
    pytest.param("sdpa", "static", marks=pytest.mark.matrix),
    pytest.param("eager", "dynamic", marks=pytest.mark.matrix),
]
BATCHES = {**ALL, "two images": ["compare <0> with <4> please", "here is <1> now", "no image at all"]}
"""In one batch an image has no text behind it, which is refused."""


def sparsevlm_rule(keep: int) -> Rule:
    """Through the naive references."""

    def rule(view: View) -> list[Answer]:
        answers = []
        for image, text, words, entered in zip(view.images, view.text, view.text_embeds, view.entered, strict=True):
            raters, _ = references.sparsevlm_raters(entered.numpy(), words.numpy())
            rows = view.attention[:, text[torch.from_numpy(raters)]][:, :, image].mean(0)
            kept, recycled, _, _ = references.sparsevlm_stage(rows.numpy(), keep)
            merged = references.recycle(view.hidden[image][torch.from_numpy(recycled)].numpy())
            answers.append(Answer(torch.from_numpy(kept), torch.from_numpy(merged).float()))
        return answers

    return rule


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", [None, "original"])
def test_every_step_equals_the_reference(positions: Positions | None, attention: str, cache: str, batch: str) -> None:
    model, make_inputs = tiny(attention)
    keeps = (12, 9, 5)
    stages = [Stage(layer, positions or "compact", sparsevlm_rule(keep)) for layer, keep in enumerate(keeps, 1)]
    strategy = SparseVLM(5, schedule=keeps)
    record = check_decoder(
        model, make_inputs(BATCHES[batch]), strategy, stages, positions=positions, cache_implementation=cache
    )
    for image in record.images:
        assert image.layer_tokens == (16, 13, 10, 6)  # each stage makes one token
        assert image.tokens_kept + image.extra_tokens == 6
        assert image.extra_tokens >= 1
        assert [(stage.tokens_in, stage.tokens_out, stage.made) for stage in image.stages] == [
            (16, 12, 1),
            (13, 9, 1),
            (10, 5, 1),
        ]


@method("sketch", register=False)
class Sketch(Attended):
    """Keeps the most attended tokens and makes none to four more, of what it dropped; how many depends on the image."""

    needs: tuple[Signal, ...] = (
        signal_named("key"),
        signal_named("decoder_attention"),
        signal_named("decoder_hidden"),
    )
    yields = "extended"

    def choose(self, tokens: Tokens) -> Choice:
        assert tokens.decoder_hidden is not None
        assert tokens.key is not None
        kept = super().choose(tokens).indices
        return Choice(kept, extra=sketch(tokens.decoder_hidden, tokens.key).to(tokens.visual.dtype))


def sketch(hidden: Tensor, key: int) -> Tensor:
    return torch.stack([hidden[i::3].mean(0) for i in range(4)])[: key % 5]


def sketch_rule(view: View) -> list[Answer]:
    kept = most_attended(number)(view)
    pairs = zip(kept, view.images, view.keys_of_images, strict=True)
    return [Answer(rows, sketch(view.hidden[image], key)) for rows, image, key in pairs]  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", ALL)
@pytest.mark.parametrize(("attention", "cache"), MATRIX)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_different_numbers_of_new_tokens(attention: str, cache: str, batch: str, positions: Positions) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(ALL[batch])
    strategy = Sketch(layer=1) >> Sketch(layer=2) >> FastV(4, layer=3)
    stages = [
        Stage(1, positions, sketch_rule),
        Stage(2, positions, sketch_rule),
        Stage(3, positions, most_attended(lambda key, left: 4)),
    ]
    record = check_decoder(model, inputs, strategy, stages, positions=positions, cache_implementation=cache)
    for image in record.images:
        assert image.tokens_kept + image.extra_tokens == min(4, image.layer_tokens[2])
    forward = record.calls[-1]
    assert forward.columns is not None
    made = [
        sum(image.extra_tokens for image in forward.images if image.prompt == row) for row in range(forward.prompts)
    ]
    assert (forward.columns == -2).sum(1).tolist() == made


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("strategy", [SparseVLM(5), Sketch(layer=1) >> Sketch(layer=3)], ids=repr)
def test_beams_of_a_batch_equal_single_rows(strategy: SparseVLM, cache: str) -> None:
    model, make_inputs = tiny()
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with prune(model, strategy) as together:
        many = model.generate(**make_inputs(BATCHES["padded"]), **settings, cache_implementation=cache)
    for row, prompt in enumerate(BATCHES["padded"]):
        with prune(model, strategy) as alone:
            single = model.generate(**make_inputs([prompt]), **settings)
        assert torch.equal(many[row, -4:], single[0, -4:])
        assert torch.equal(together.images[row].indices, alone.images[0].indices)
        assert together.images[row].layer_tokens == alone.images[0].layer_tokens


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_everything_is_the_plain_model_to_the_last_bit(attention: str) -> None:
    model, make_inputs = tiny(attention)
    inputs = make_inputs(BATCHES["padded"])
    settings = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    plain, forward = model.generate(**inputs, **settings), model(**inputs).logits
    with prune(model, SparseVLM(1.0)) as record:
        pruned, pruned_forward = model.generate(**inputs, **settings), model(**inputs).logits
    assert torch.equal(torch.stack(plain.logits), torch.stack(pruned.logits))
    assert torch.equal(forward, pruned_forward)
    assert record.images[0].extra_tokens == 0


def test_half_precision_runs() -> None:
    model, make_inputs = tiny()
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    with prune(half, "sparsevlm(keep=4, official=True)") as record:
        half.generate(**make_inputs(BATCHES["padded"]), max_new_tokens=3)
    assert [image.layer_tokens[-1] for image in record.images] == [5] * 3


def test_schedules() -> None:
    tokens = Tokens(torch.zeros(576, 2))

    def counts(strategy: SparseVLM) -> list[int]:
        return [stage.count(tokens) for stage in strategy.stages]

    for budget, schedule in ((192, [300, 200, 110]), (128, [303, 110, 36]), (96, [238, 48, 26]), (64, [66, 30, 17])):
        assert counts(SparseVLM.published(budget)) == schedule
    assert counts(SparseVLM(55, schedule="192")) == [150, 100, 55]
    assert counts(SparseVLM(400, schedule="192")) == [576, 576, 400]
    assert counts(SparseVLM(72)) == [288, 144, 72]
    assert counts(SparseVLM(9, schedule=(3, 1), layers=(2, 5))) == [27, 9]
    assert [order_of(stage.place)[1] for stage in SparseVLM(9).stages] == [3, 7, 16]
    assert SparseVLM(9).at_depth(32) == SparseVLM(9, layers=(3, 7, 16))
    assert SparseVLM(9).at_depth(LAYERS) == SparseVLM(9, layers=(1, 2, 3))
    with pytest.raises(ValueError, match="at least 4 decoder layers"):
        SparseVLM(9).at_depth(3)
    for bad in ({"schedule": "100"}, {"schedule": (1, 2, 3)}, {"schedule": (5, 3)}, {"layers": (3, 2)}, {"layers": 5}):
        with pytest.raises((TypeError, ValueError), match="SparseVLM: (schedule|layers) must"):
            SparseVLM(9, **bad)
    with pytest.raises(ValueError, match="budget must be one of"):
        SparseVLM.published(100)


def test_noise_decides_ties_and_depends_on_seed_and_image_alone() -> None:
    tokens = Tokens(
        torch.zeros(60, 2),
        key=7,
        decoder_text_attention=torch.linspace(1, 2, 60)[None],
        decoder_hidden=torch.arange(60.0)[:, None].expand(60, 2).contiguous() % 7,
        decoder_entered=torch.eye(2),
        decoder_text=torch.ones(1, 2),
    )
    noisy = {seed: SparseVLMStage(10, official=True, seed=seed).select(tokens) for seed in range(12)}
    plain = SparseVLMStage(10).select(tokens)
    assert all(torch.equal(selection.indices, plain.indices) for selection in noisy.values())
    made = {seed: selection.extra for seed, selection in noisy.items() if selection.extra is not None}
    assert len(made) == len(noisy)
    assert plain.extra is not None
    assert any(not torch.equal(extra, plain.extra) for extra in made.values())
    for seed, extra in made.items():
        again = SparseVLMStage(10, official=True, seed=seed).select(tokens).extra
        assert again is not None
        assert torch.equal(again, extra)
    # The program drops at least one token whatever the budget.
    assert SparseVLMStage(60, official=True).select(tokens).kept == 59
    assert SparseVLMStage(60).select(tokens).kept == 60


def test_what_does_not_fit_is_refused() -> None:
    model, make_inputs = tiny()
    with pytest.raises(ValueError, match="give it a later layer"):
        SparseVLMStage(5, layer=2) >> DART(3, layer=2)
    SparseVLMStage(5, layer=2) >> DART(3, layer=3)
    with pytest.raises(ValueError, match="of the original tokens"):
        SparseVLMStage(5, layer=2) >> NeedsTower(layer=3)
    with prune(model, SparseVLM(5)), pytest.raises(UnsupportedError, match="no text after its image"):
        model(**make_inputs(["here is <1>"]))


@method("needs_tower", register=False)
class NeedsTower(FitPruneStage):
    """Wants to know about every token what only the image's own tokens have."""

    needs = (signal_named("cls_attention_last"),)
    drop: int | float = 1


def test_extra_tokens_are_for_strategies_that_say_so() -> None:
    @method("silent", register=False)
    class Silent(Random):
        def choose(self, tokens: Tokens) -> Choice:
            return Choice(torch.arange(self.count(tokens)), extra=tokens.visual[:1])

    with pytest.raises(RuntimeError, match="yields 'subset' but extra"):
        Silent(3).select(Tokens(torch.zeros(4, 2)))
