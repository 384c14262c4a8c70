"""CLIP beside the model: signals, selections and refusals against direct calls of a CLIPModel."""

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.models.oracle import ByContent, tiny
from tests.unit.evaluate.tiny import tiny_image, tiny_processor
from tokenprune import Choice, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import TRIM, CDPruner
from tokenprune.baselines.cdpruner import cdpruner
from tokenprune.baselines.trim import trim
from tokenprune.bundled import load_model, load_processor, load_scenes, prompt
from tokenprune.core import strategy as core
from tokenprune.core.signals import signal_named
from tokenprune.evaluate.loading import load
from tokenprune.models import Clip, UnsupportedError, prune_inputs, question_reader
from tokenprune.models.families.registry import adapter_for

LIMIT = 8
"""Tokens that the tiny text tower takes; the real one takes 77."""
QUESTIONS = ["w7 w8 w30", " ".join(f"w{i}" for i in range(40, 60))]


@lru_cache
def tiny_clip_model() -> Any:
    """A random CLIPModel whose vision weights are those of the tiny LLaVA's tower."""
    from transformers import CLIPConfig, CLIPModel

    model = tiny()[0]
    text = {
        "vocab_size": 120,
        "hidden_size": 20,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LIMIT,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    config = CLIPConfig(text_config=text, vision_config=model.config.vision_config.to_dict(), projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        clip = CLIPModel(config).eval()
        for parameter in clip.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    return clip


def tiny_tokenizer() -> Any:
    """Words as in the tiny processor; behind the text an end token with the largest id, as in CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 119)}, "</s>": 119}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 1), ("</s>", 119)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_clip(**options: Any) -> Clip:
    return Clip(tiny_clip_model(), tiny_tokenizer(), question_reader(tiny_processor()), **options)


def batch(questions: list[str] = QUESTIONS) -> dict[str, Any]:
    processor = tiny_processor()
    processor.tokenizer.padding_side = "left"
    texts = [f"user : <image> {question} assistant :" for question in questions]
    images = [tiny_image(seed) for seed in range(len(questions))]
    return dict(processor(images=images, text=texts, return_tensors="pt", padding=True))


def expected_text(question: str) -> Tensor:
    """One segment after another, as the model's own text tower gives them."""
    clip, ids = tiny_clip_model(), tiny_tokenizer()(question)["input_ids"]
    rows = []
    with torch.no_grad():
        for start in range(0, len(ids), LIMIT):
            segment = ids[start : start + LIMIT]
            padded = torch.tensor([segment + [0] * (LIMIT - len(segment))])
            mask = torch.tensor([[1] * len(segment) + [0] * (LIMIT - len(segment))])
            rows.append(clip.get_text_features(input_ids=padded, attention_mask=mask).pooler_output[0])
    return torch.stack(rows)


def expected_visual(pixels: Tensor) -> Tensor:
    clip, tower = tiny_clip_model(), tiny()[0].model.vision_tower
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        result: Tensor = clip.visual_projection(clip.vision_model.post_layernorm(states))
    return result


@method("looking", register=False)
class Looking(core.Stage):
    """Keeps all but one token and hands out what it was shown."""

    needs = (
        signal_named("clip_visual"),
        signal_named("clip_text"),
    )
    shown: ClassVar[list[Tokens]] = []

    def requested(self, tokens: Tokens) -> int | None:
        return tokens.n - 1

    def choose(self, tokens: Tokens) -> Choice:
        self.shown.append(tokens)
        return Choice(torch.arange(tokens.n - 1))


def test_signals_are_those_of_direct_calls() -> None:
    inputs = batch()
    Looking.shown.clear()
    prune_inputs(tiny()[0], Looking(), clip=tiny_clip(), **inputs)
    visual = expected_visual(inputs["pixel_values"])
    for row, (tokens, question) in enumerate(zip(Looking.shown, QUESTIONS, strict=True)):
        assert tokens.clip_visual is not None
        assert tokens.clip_text is not None
        torch.testing.assert_close(tokens.clip_visual, visual[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.clip_text, expected_text(question), atol=1e-5, rtol=0)
    assert [tokens.clip_text.shape[0] for tokens in Looking.shown] == [1, 3]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_methods_keep_what_their_cores_choose(attention: str) -> None:
    model, inputs = tiny(attention)[0], batch()
    visual = expected_visual(inputs["pixel_values"])
    with torch.no_grad():
        features = torch.stack(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    texts = [expected_text(question) for question in QUESTIONS]
    wanted: dict[PruningStrategy, list[Tensor]] = {
        CDPruner(5): [cdpruner(features[[i]], visual[[i]], texts[i], 5)[0].sort().values for i in range(2)],
        TRIM(0.25): [trim(visual[i], texts[i].mean(0), ratio=0.25).kept_sorted for i in range(2)],
    }
    for strategy, kept in wanted.items():
        with prune(model, strategy, clip=tiny_clip()) as record:
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        for image, indices in zip(record.images, kept, strict=True):
            assert torch.equal(image.indices, indices)
    assert any(not torch.equal(*kept) for kept in wanted.values())


def test_a_long_text_can_be_cut_instead() -> None:
    clip = tiny_clip(long="cut")
    ids = tiny_tokenizer()(QUESTIONS[1], truncation=True, max_length=LIMIT, return_tensors="pt")
    with torch.no_grad():
        expected = tiny_clip_model().get_text_features(ids["input_ids"]).pooler_output
    torch.testing.assert_close(clip.text(QUESTIONS[1]), expected, atol=1e-5, rtol=0)


def test_a_piece_without_end_token_is_read_at_its_largest_id_also_with_a_new_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = tiny_clip()
    old = clip.text(QUESTIONS[1])
    monkeypatch.setattr(clip.model.text_model.config, "eos_token_id", 119)
    torch.testing.assert_close(clip.text(QUESTIONS[1]), old, atol=0, rtol=0)


def test_the_question_is_read_from_the_prompt() -> None:
    processor, scene = load_processor(), load_scenes(count=1)[0]
    text = prompt(scene.questions[0].text)
    ids = processor(images=scene.image, text=text, return_tensors="pt")["input_ids"][0]
    assert question_reader(processor)(ids) == scene.questions[0].text


class Words:
    """Stands in for a processor: ids are places in a list of words."""

    image_token_id = 0

    def __init__(self, text: str) -> None:
        self.words = ["<image>", *text.split(" ")]
        self.tokenizer = self

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(self.words[i] for i in ids)

    def question(self) -> str:
        return question_reader(self)(torch.arange(len(self.words)))


@pytest.mark.parametrize(
    "text",
    [
        "What is this? ASSISTANT:",
        "What is this?\nAnswer the question using a single word or phrase. ASSISTANT:",
        "What is this? \nassistant\n",
        "What is this? [/INST]",
        "What is this?",
    ],
)
def test_templates_and_instructions_are_no_part_of_the_question(text: str) -> None:
    assert Words(text).question() == "What is this?"


def test_a_prompt_without_question_behind_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no text behind the image; pass Clip\(\.\.\., question"):
        Words("ASSISTANT:").question()


@pytest.mark.parametrize("strategy", [CDPruner(4), TRIM(4), ByContent() >> TRIM(2)], ids=repr)
def test_without_clip_the_error_says_what_to_pass(strategy: PruningStrategy) -> None:
    with pytest.raises(UnsupportedError, match=r"needs Tokens.clip_.* clip=tokenprune\.models\.Clip\(.* --clip FOLDER"):
        prune(tiny()[0], strategy)


def test_another_tower_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has hidden_size=128, this CLIP has 24; pass the CLIP that"):
        prune(load_model(), CDPruner(4), clip=tiny_clip())
    model = tiny()[0]
    other = type(model)(model.config).eval()
    with pytest.raises(UnsupportedError, match=r"weights .* are not those of this CLIP; .* same_weights=False"):
        prune(other, CDPruner(4), clip=tiny_clip())
    with prune(other, CDPruner(4), clip=tiny_clip(same_weights=False)):
        pass
    with prune(type(model)(model.config).to(torch.bfloat16), ByContent(), clip=tiny_clip()):  # not asked: not looked at
        pass


def test_a_tower_in_half_precision_is_the_same_tower() -> None:
    model = tiny()[0]
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    tiny_clip().check(adapter_for(half))


def test_a_tower_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(tiny()[0])
    monkeypatch.setattr(type(adapter.vision_tower.config), "model_type", "siglip_vision_model")
    clip = tiny_clip()
    monkeypatch.setattr(clip.model.vision_model, "config", type("Config", (), {"model_type": "clip_vision_model"})())
    with pytest.raises(UnsupportedError, match="is a siglip_vision_model, whose states mean nothing in CLIP's joint"):
        clip.check(adapter)


def test_several_feature_layers_have_no_single_state_per_patch() -> None:
    with pytest.raises(UnsupportedError, match="have width 48 but this CLIP has 24"):
        tiny_clip().visual(torch.zeros(16, 48))


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), "clip"])
def test_something_else_than_a_clip_model_is_refused(model: object) -> None:
    with pytest.raises(TypeError, match="Clip: model must be a CLIPModel"):
        Clip(model, tiny_tokenizer(), str)


def test_unknown_treatment_of_long_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="long must be one of 'segments', 'cut', got 'mean'"):
        tiny_clip(long="mean")


def test_the_command_line_loads_it_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenprune.cli.main import main

    tiny()[0].save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    tiny_clip_model().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    loaded = load(str(tmp_path / "model"), clip=str(tmp_path / "clip"), device="cpu")
    assert loaded.clip is not None
    assert loaded.clip_digest
    tiny_image(1).save(tmp_path / "picture.png")
    words = ["select", str(tmp_path / "picture.png"), "--question", "w7 w8", "--strategy", "cdpruner(keep=5)"]
    options = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*words, *options, "--clip", str(tmp_path / "clip")]) == 0
    assert "kept       5 of 16" in capsys.readouterr().out
    assert main([*words, *options]) == 2
    assert "--clip" in capsys.readouterr().err
    assert main([*words, *options, "--clip", str(tmp_path / "nothing")]) == 2
    assert "--clip" in capsys.readouterr().err
