"""`read` gives what the plain model says on the eager backend, one prompt at a time, without padding."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor

from tests.models.family_oracle import BATCHES, IN_DECODER, LAYERS, VIDEO_BATCHES, all_features, tiny
from tests.models.family_strategies import KINDS
from tests.models.flash import emulated_flash, use_flash
from tests.models.oracle import InPickOrder, traces
from tests.models.test_clip import QUESTIONS, batch, expected_text, expected_visual, tiny_clip
from tests.models.test_wrapped import lora
from tokenprune import FromDecoder, FromStates, Signal, Tokens, prune, read
from tokenprune.core.signals import (
    CLIP_TEXT,
    CLIP_VISUAL,
    CLS_ATTENTION,
    DECODER_ATTENTION,
    DECODER_ENTERED,
    DECODER_HIDDEN,
    DECODER_TEXT,
    DECODER_TEXT_ATTENTION,
    IMAGE_KEY,
    PROMPT_NUMBER,
    TILES,
    VISION_KEYS,
    VISION_STATES,
)
from tokenprune.models import UnsupportedError, adapter_for, read_layers
from tokenprune.testing import tiny_families, tiny_model

AHEAD = Signal("test_ahead", "_ n", FromDecoder(lambda seen: seen.rows(seen.last)[:, 0], layer=0))
KEYS = Signal("test_keys", "_ n _", FromDecoder(lambda seen: seen.keys[:, seen.image]))
NORMED = Signal("test_normed", "n d", FromStates(lambda seen: seen.normed[seen.image]))
INSIDE = [DECODER_ATTENTION, DECODER_TEXT_ATTENTION, DECODER_HIDDEN, DECODER_ENTERED, DECODER_TEXT, KEYS]

FAMILIES = [
    pytest.param(family, marks=() if family in ("llava", *KINDS) else pytest.mark.matrix, id=family)
    for family in tiny_families()
]
DECODER_FAMILIES = [p for p in FAMILIES if p.values[0] in (*IN_DECODER, "llava")]
PROMPTS = ["compare <0> with <5> please", "here is <1> now", "no image at all"]


class Row:
    """One prompt alone through the plain model on the eager backend."""

    def __init__(self, family: str, prompt: str) -> None:
        self.model, make_inputs = tiny(family, "eager")
        inputs = make_inputs([prompt])
        self.hidden: list[Tensor] = []  # input of layer 0, 1, ...; last: output of the final norm
        layers = adapter_for(self.model).decoder_layers
        hooks = [layer.register_forward_pre_hook(self.note, with_kwargs=True) for layer in layers]
        with torch.no_grad():
            out = self.model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        self.hidden.append(out.hidden_states[-1][0])
        self.attention = [rows[0] for rows in out.attentions]  # (heads, columns, columns) of each layer
        ids, config = inputs["input_ids"][0], self.model.config
        self.ids = ids
        self.visual = (ids == config.image_token_id) | (ids == getattr(config, "video_token_id", -1))

    def note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hidden.append((args[0] if args else kwargs["hidden_states"])[0])

    def images(self, counts: list[int]) -> list[Tensor]:
        """Columns of each image, given how many tokens each has."""
        return list(self.visual.nonzero().flatten().split(counts))

    def text_after(self, image: Tensor) -> Tensor:
        after = torch.arange(len(self.ids)) > image[-1]
        return (after & ~self.visual).nonzero().flatten()


def by_prompt(images: list[Tokens], prompts: list[str]) -> list[list[Tokens]]:
    return [[image for image in images if image[PROMPT_NUMBER] == row] for row in range(len(prompts))]


def close(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and torch.allclose(value.float(), expected.float(), atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_signals_of_the_language_model_are_those_of_the_eager_backend(family: str, side: str) -> None:
    model, make_inputs = tiny(family)
    prompts = PROMPTS
    for layer in (adapter_for(model).first_layer, LAYERS - 1):
        images = read(model, make_inputs(prompts, padding_side=side), [*INSIDE, AHEAD], layer=layer)
        assert [image[PROMPT_NUMBER] for image in images] == [0, 0, 1]
        for prompt, mine in zip(prompts, by_prompt(images, prompts), strict=True):
            row = Row(family, prompt)
            for image, columns in zip(mine, row.images([tokens.n for tokens in mine]), strict=True):
                text = row.text_after(columns)
                before, here = row.attention[layer - 1], row.attention[layer]
                assert close(image[DECODER_ATTENTION], before[:, -1, columns])
                assert close(image[DECODER_TEXT_ATTENTION], before[:, text][..., columns].mean(0))
                assert close(image[DECODER_HIDDEN], row.hidden[layer][columns])
                assert torch.equal(image[DECODER_TEXT], row.hidden[0][text])
                assert close(image[DECODER_ENTERED], row.hidden[0][columns])
                assert close(image[AHEAD], here[:, -1, columns])


@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_after_the_last_layer(family: str) -> None:
    model, make_inputs = tiny(family)
    prompts = BATCHES["padded"]
    images = read(model, make_inputs(prompts), [NORMED, DECODER_ATTENTION], layer=LAYERS)
    for prompt, [image] in zip(prompts, by_prompt(images, prompts), strict=True):
        row = Row(family, prompt)
        [columns] = row.images([image.n])
        assert close(image[NORMED], row.hidden[-1][columns])
        assert close(image[DECODER_ATTENTION], row.attention[-1][:, -1, columns])


@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_all_layers_in_one_run_are_those_of_a_run_each(family: str) -> None:
    model, make_inputs = tiny(family)
    inputs, layers = make_inputs(PROMPTS), range(adapter_for(model).first_layer, LAYERS + 1)
    found = read_layers(model, inputs, INSIDE, layers)
    assert len(found) == len(layers)
    for layer, images in zip(layers, found, strict=True):
        for image, single in zip(images, read(model, inputs, INSIDE, layer=layer), strict=True):
            assert all(torch.equal(image[signal], single[signal]) for signal in INSIDE)


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1]])
def test_layers_ascend(layers: list[int]) -> None:
    model, make_inputs = tiny("llava")
    with pytest.raises(ValueError, match="read_layers: layers must ascend, at least one, got"):
        read_layers(model, make_inputs(["what is in <0> here"]), INSIDE, layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_text_and_question(family: str) -> None:
    model, make_inputs = tiny(family)
    prompts = PROMPTS
    inputs = make_inputs(prompts)
    images = read(model, inputs)
    expected = torch.cat([rows[0] for rows in all_features(family, dict(inputs)).values()])
    assert close(torch.cat([image.visual for image in images]), expected)
    for prompt, mine in zip(prompts, by_prompt(images, prompts), strict=True):
        row = Row(family, prompt)
        text = (~row.visual).nonzero().flatten()
        for image in mine:
            assert image.index is None
            assert image.grid is None or image.grid[0] * image.grid[1] == image.n
            assert image.text is not None
            assert image.question is not None
            assert torch.equal(image.question, text > row.visual.nonzero()[-1])
            assert not image.attached
            if "gemma" not in family:  # which scale what enters
                assert torch.equal(image.text, row.hidden[0][text])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_padding_equals_single_prompts(family: str) -> None:
    model, make_inputs = tiny(family)
    prompts, adapter = PROMPTS, adapter_for(model)
    needs = [s for s in (CLS_ATTENTION, VISION_KEYS.at(0), VISION_STATES, IMAGE_KEY) if adapter.why_not(s) is None]
    inside = adapter.why_not(DECODER_HIDDEN) is None
    needs, layer = ([*needs, *INSIDE], LAYERS - 1) if inside else (needs, None)
    alone = [image for prompt in prompts for image in read(model, make_inputs([prompt]), needs, layer=layer)]
    for side in ("left", "right"):
        together = read(model, make_inputs(prompts, padding_side=side), needs, layer=layer)
        for image, single in zip(together, alone, strict=True):
            for signal in needs:
                value, expected = image[signal], single[signal]
                assert close(value, expected) if isinstance(value, Tensor) else value == expected, (signal, side)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_signals_of_the_vision_tower_are_those_of_the_eager_backend(attention: str) -> None:
    model, make_inputs = tiny("llava", attention)
    inputs = make_inputs(PROMPTS)
    tower = tiny("llava", "eager")[0].model.vision_tower
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    needs = [CLS_ATTENTION, CLS_ATTENTION.at(0), CLS_ATTENTION.at(-1), VISION_STATES]
    for i, image in enumerate(read(model, inputs, needs)):
        assert close(image[CLS_ATTENTION], out.attentions[-2][i, :, 0, 1:])
        assert close(image[CLS_ATTENTION.at(0)], out.attentions[0][i, :, 0, 1:])
        assert close(image[CLS_ATTENTION.at(-1)], out.attentions[-1][i, :, 0, 1:])
        assert close(image[VISION_STATES], out.hidden_states[-2][i, 1:])


def test_signals_of_tiles_follow_the_tokens() -> None:
    model, make_inputs = tiny("llava_next")
    inputs = make_inputs(PROMPTS)
    tower = tiny("llava_next", "eager")[0].model.vision_tower
    images = read(model, inputs, [CLS_ATTENTION.at(0), VISION_STATES, TILES])
    whole = 0
    for image, pixels in zip(images, inputs["pixel_values"], strict=True):
        with torch.no_grad():
            out = tower(pixels, output_attentions=True, output_hidden_states=True)
        tiles = image[TILES]
        assert not image[VISION_STATES][tiles == -1].any()
        assert (tiles == -1).any()
        for tile in range(int(tiles.max()) + 1):
            here = tiles == tile
            if int(here.sum()) == 16:  # of other tiles the part that only fills up is cut off
                whole += tile > 0
                assert close(image[CLS_ATTENTION.at(0)][:, here], out.attentions[0][tile, :, 0, 1:])
                assert close(image[VISION_STATES][here], out.hidden_states[-2][tile, 1:])
    assert whole


@pytest.mark.parametrize("family", ["qwen2_vl", pytest.param("llava_onevision", marks=pytest.mark.matrix)])
def test_videos(family: str) -> None:
    model, make_inputs = tiny(family)
    prompts = VIDEO_BATCHES["videos"]
    images = read(model, make_inputs(prompts), [DECODER_HIDDEN, DECODER_ATTENTION], layer=2)
    for prompt, mine in zip(prompts, by_prompt(images, prompts), strict=True):
        row = Row(family, prompt)
        for image, columns in zip(mine, row.images([tokens.n for tokens in mine]), strict=True):
            assert close(image[DECODER_HIDDEN], row.hidden[2][columns])
            assert close(image[DECODER_ATTENTION], row.attention[1][:, -1, columns])


def test_clip() -> None:
    model, inputs = tiny("llava")[0], batch()
    clip = tiny_clip()
    with pytest.raises(UnsupportedError, match=r"read: clip_visual .* pass clip="):
        read(model, inputs, [CLIP_VISUAL, CLIP_TEXT])
    from tests.models.oracle import tiny as clip_llava

    images = read(clip_llava()[0], inputs, [CLIP_VISUAL, CLIP_TEXT], clip=clip)
    for image, question, visual in zip(images, QUESTIONS, expected_visual(inputs["pixel_values"]), strict=True):
        assert close(image[CLIP_VISUAL], visual)
        assert close(image[CLIP_TEXT], expected_text(question))


def test_inside_a_wrapper() -> None:
    wrapper, merged, inputs = lora("llava")
    needs = [CLS_ATTENTION, DECODER_HIDDEN]
    compiled = torch.compile(merged, backend="eager")
    for image, same, expected in zip(
        *(read(model, inputs, needs, layer=2) for model in (wrapper, compiled, merged)), strict=True
    ):
        assert close(image[DECODER_HIDDEN], expected[DECODER_HIDDEN])
        assert close(image.visual, expected.visual)
        assert torch.equal(same[DECODER_HIDDEN], expected[DECODER_HIDDEN])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl"])
def test_weights_that_are_elsewhere_until_a_module_runs(family: str) -> None:
    plain, make_inputs = tiny_model(family, layers=LAYERS)
    inputs = make_inputs(PROMPTS)
    expected = read(plain, inputs, INSIDE, layer=LAYERS)
    cpu_offload(plain, execution_device="cpu")
    for _ in range(2):
        for image, same in zip(read(plain, inputs, INSIDE, layer=LAYERS), expected, strict=True):
            assert torch.equal(image.visual, same.visual)
            assert all(torch.equal(image[signal], same[signal]) for signal in INSIDE)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_with_flash_attention(family: str) -> None:
    plain, make_inputs = tiny(family)
    inputs = make_inputs(PROMPTS)
    expected = read(plain, inputs, INSIDE, layer=3)
    with emulated_flash():
        found = read(use_flash(tiny_model(family, layers=LAYERS)[0]), inputs, INSIDE, layer=3)
    for image, same in zip(found, expected, strict=True):
        assert all(close(image[signal], same[signal]) for signal in INSIDE)


def test_nothing_stays_on_the_model_also_after_errors() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(BATCHES["padded"])

    def broken(seen: Any) -> Tensor:
        raise ArithmeticError

    logits = model(**inputs).logits  # transformers' own hooks come with the first call
    before = traces(model)
    for read_it in (INSIDE, [Signal("test_broken", "n", FromStates(broken))]):
        try:
            read(model, inputs, read_it, layer=2)
        except ArithmeticError:
            assert read_it is not INSIDE
        assert traces(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def test_a_model_in_training_mode_is_read_as_in_evaluation_mode() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(BATCHES["padded"])
    expected = read(model, inputs, INSIDE, layer=2)
    config = model.model.language_model.layers[0].self_attn
    config.attention_dropout, before = 0.5, config.attention_dropout
    model.model.language_model.train()
    try:
        modes = [module.training for module in model.modules()]
        for image, same in zip(read(model, inputs, INSIDE, layer=2), expected, strict=True):
            assert torch.equal(image[DECODER_HIDDEN], same[DECODER_HIDDEN])
            assert not image.attached
        assert [module.training for module in model.modules()] == modes
    finally:
        config.attention_dropout = before
        model.eval()


def test_an_open_context_is_not_disturbed() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(BATCHES["padded"])
    with prune(model, InPickOrder()) as record:
        for needs, layer in (([], None), (INSIDE, 2)):
            with pytest.raises(RuntimeError, match="read: a prune context is open on this model"):
                read(model, inputs, needs, layer=layer)
        model(**inputs)
        assert len(record.calls) == 1
    assert len(read(model, inputs, INSIDE, layer=2)) == 3


def test_threads_read_their_own_prompts() -> None:
    model, make_inputs = tiny("llava")
    prompts = [f"look at <{i}> now {'and then ' * i}" for i in range(6)]
    expected = [read(model, make_inputs([prompt]), INSIDE, layer=2)[0] for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda prompt: read(model, make_inputs([prompt]), INSIDE, layer=2), prompts))
    for [image], same in zip(found, expected, strict=True):
        assert all(close(image[signal], same[signal]) for signal in INSIDE)


def test_a_prompt_that_ends_in_its_image() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(["what is in <0>"])
    assert read(model, inputs, [DECODER_TEXT])[0][DECODER_TEXT].shape == (0, 32)
    with pytest.raises(UnsupportedError, match="no text after its image 0"):
        read(model, inputs, [DECODER_TEXT_ATTENTION], layer=2)


def test_without_images() -> None:
    model, make_inputs = tiny("llava")
    assert read(model, make_inputs(["nothing to see"]), [CLS_ATTENTION]) == []
    assert read(model, make_inputs(["nothing to see"]), INSIDE, layer=2) == []
    inputs = make_inputs(["what is in <0>"])
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match="pixel_values is missing"):
        read(model, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_cannot_supply_is_refused_with_its_reason(family: str) -> None:
    model, make_inputs = tiny(family)
    adapter, inputs = adapter_for(model), make_inputs(["what is in <0> here"])
    for signal in (
        CLS_ATTENTION,
        CLS_ATTENTION.at(0),
        CLS_ATTENTION.at(-9),
        VISION_KEYS,
        VISION_STATES,
        DECODER_HIDDEN,
        TILES.strict(),
    ):
        reason = adapter.why_not(signal)
        if reason is None:
            continue
        assert "because" in reason or signal in (TILES.strict(), VISION_KEYS, VISION_STATES, DECODER_HIDDEN)
        with pytest.raises(UnsupportedError, match=re.escape(f"cannot supply {signal}{reason}")):
            read(model, inputs, [signal], layer=None if signal is not DECODER_HIDDEN else 3)
    if adapter.why_not(TILES) is not None:
        assert read(model, inputs, [TILES])[0][TILES] is None


def test_layers_where_no_stage_can_act_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny("llava")
    monkeypatch.setattr(model.model.language_model.config, "layer_types", ["sliding_attention"] * LAYERS, raising=False)
    with pytest.raises(
        UnsupportedError, match="read: decoder_hidden cannot be read at decoder layer 2 .* full attenti"
    ):
        read(model, make_inputs(["what is in <0> here"]), [DECODER_HIDDEN], layer=2)


def test_values_that_are_not_finite_are_refused() -> None:
    model, make_inputs = tiny("llava")
    endless = Signal("test_endless", "n", FromStates(lambda seen: seen.hidden[seen.image, 0] * torch.inf))
    with pytest.raises(ValueError, match="test_endless .*(NaN|infinity|finite)"):
        read(model, make_inputs(["what is in <0> here"]), [endless], layer=2)


@pytest.mark.parametrize(
    ("needs", "layer", "error", "words"),
    [
        ([DECODER_HIDDEN], None, ValueError, "say at which decoder layer: layer=1 to layer=4"),
        ([DECODER_HIDDEN], 0, ValueError, "from 1 to 4 .* got 0"),
        ([DECODER_HIDDEN], 5, ValueError, "from 1 to 4 .* got 5"),
        ([AHEAD], 4, ValueError, "from 1 to 3 .*test_ahead is what that layer attends to, got 4"),
        ([DECODER_HIDDEN], True, TypeError, "layer must be an int, got True"),
        ([CLS_ATTENTION], 3, ValueError, r"layer=3 is for signals .* CLS_ATTENTION\.at\(0\)"),
        (
            [CLS_ATTENTION.at(7)],
            None,
            UnsupportedError,
            r"cls_attention\.at\(7\), because its vision tower has 3 layers",
        ),
        (CLS_ATTENTION, None, TypeError, r"write \[CLS_ATTENTION\]"),
        ("cls_attention", None, TypeError, "needs must be a sequence of signals, got 'cls_attention'"),
        (["cls_attention"], None, TypeError, "needs must hold signals .* got 'cls_attention'"),
    ],
)
def test_bad_needs(needs: Any, layer: Any, error: type[Exception], words: str) -> None:
    model, make_inputs = tiny("llava")
    with pytest.raises(error, match=words):
        read(model, make_inputs(["what is in <0> here"]), needs, layer=layer)


def test_bad_inputs() -> None:
    model, make_inputs = tiny("llava")
    inputs = make_inputs(BATCHES["padded"])
    with pytest.raises(TypeError, match="inputs must be what the processor returned"):
        read(model, inputs["input_ids"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs holds max_new_tokens"):
        read(model, {**inputs, "max_new_tokens": 3})
    with pytest.raises(UnsupportedError, match="inputs_embeds"):
        read(model, {**inputs, "inputs_embeds": torch.zeros(3, 9, 32)})
    with pytest.raises(ValueError, match="image placeholders"):
        read(model, {**inputs, "pixel_values": inputs["pixel_values"][:2]})
    labelled = read(model, {**inputs, "labels": inputs["input_ids"]}, INSIDE, layer=2)
    assert len(labelled) == 3
