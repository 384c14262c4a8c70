import json

import pytest
import torch

from benchmarks.bundled_model.packing import pack, predict
from benchmarks.bundled_model.vision import normalise, tower_features
from tokenprune.bundled import MODEL_DIR, load_model, load_processor, load_scenes, prompt
from tokenprune.bundled.card import accuracy, answer, norms, table, wilson
from tokenprune.bundled.vocabulary import IMAGE

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]  # noqa: ANN201
    return load_model()


@pytest.fixture(scope="module")
def processor():  # type: ignore[no-untyped-def]  # noqa: ANN201
    return load_processor()


def test_folder_loads_offline_with_the_auto_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(MODEL_DIR)
    assert model.dtype == torch.float32
    assert model.config.image_seq_length == 256
    assert type(transformers.AutoProcessor.from_pretrained(MODEL_DIR)).__name__ == "LlavaProcessor"
    assert type(transformers.AutoTokenizer.from_pretrained(MODEL_DIR)).__name__ != "NoneType"


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir()}
    assert files["model.safetensors"] <= 8_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert {"config.json", "generation_config.json", "MODEL_CARD.md", "metrics.json", "training_log.csv"} <= set(files)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_model_gives_the_dtype_and_is_in_evaluation_mode(dtype: torch.dtype) -> None:
    model = load_model(dtype)
    assert model.dtype == dtype
    assert not model.training


def test_load_model_passes_the_attention_on() -> None:
    assert load_model(attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("bad", ["float32", torch.int64])
def test_load_model_refuses_what_is_not_a_floating_dtype(bad: object) -> None:
    with pytest.raises(TypeError, match="dtype must be a floating torch dtype"):
        load_model(bad)  # type: ignore[arg-type]


def test_dense_accuracy_on_held_out_scenes(model, processor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    results = answer(model, processor, load_scenes("test", count=16, seed=11))
    assert len(results) == 160
    figures = accuracy(results)
    assert figures["overall"]["accuracy"] >= 0.85
    assert figures["lookups"]["accuracy"] >= 0.85


def test_without_the_image_answers_are_at_chance(model, processor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    figures = accuracy(answer(model, processor, load_scenes("test", count=30, seed=12), image=False))
    assert figures["overall"]["accuracy"] <= figures["overall"]["majority"] + 0.05


def test_packed_rows_predict_what_single_prompts_do(model, processor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    import numpy as np

    scene = load_scenes(count=1)[0]
    with torch.no_grad():
        pixels = normalise(np.asarray(scene.image)[None])
        features, _ = tower_features(model, pixels, torch.arange(256)[None])
        tokens = model.model.multi_modal_projector(features)
        theirs = model.model.get_image_features(pixels).pooler_output[0]
        assert torch.allclose(tokens[0], theirs, atol=1e-4)
        packed = predict(model, tokens, pack([scene.questions])).answer[0]
        for index, question in enumerate(scene.questions):
            inputs = processor(images=scene.image, text=prompt(question.text), return_tensors="pt")
            assert torch.allclose(model(**inputs).logits[0, -1], packed[index], atol=1e-3)


def test_card_shows_the_measured_numbers() -> None:
    metrics = json.loads((MODEL_DIR / "metrics.json").read_text(encoding="utf-8"))
    assert table(metrics) in (MODEL_DIR / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert metrics["dense"]["overall"]["accuracy"] >= 0.90
    assert metrics["dense"]["lookups"]["accuracy"] >= 0.85


def test_norms_of_visual_tokens_are_near_those_of_words(model, processor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    figures = norms(model, processor, load_scenes(count=4))
    assert 0.5 <= figures["visual_to_text_norm"] <= 2.0
    assert 0.0 <= figures["norm_share"] <= 1.0


def test_wilson_interval() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_prompt_without_an_image_has_no_placeholder() -> None:
    assert prompt("is there a seven ?").count(IMAGE) == 1
