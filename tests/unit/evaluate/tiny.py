"""A random LLaVA with a real processor and random pictures: a comparison in a second, without files or network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.settings import Settings
from tokenprune.testing.tiny.models import BOS, EOS, IMAGE, PAD, PATCH, SIDE, VOCABULARY, tiny_llava

SPECIAL = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<image>": IMAGE}
TEMPLATE = (
    "user : {% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    " assistant :"
)


def tiny_processor() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = [f"w{i}" for i in range(len(SPECIAL) + 1, VOCABULARY)]
    vocabulary = {**SPECIAL, "<unk>": len(SPECIAL), **{word: i + len(SPECIAL) + 1 for i, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def tiny_loaded() -> LoadedModel:
    model, _ = tiny_llava()
    return LoadedModel(
        name="tiny",
        model=model,
        processor=tiny_processor(),
        digest="0",
        device="cpu",
        dtype="float32",
        attention="sdpa",
    )


def tiny_image(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def tiny_samples(count: int, *, answers: Sequence[str] = ("w7",)) -> list[Sample]:
    """Two questions per picture, so that pictures are shared; every third question is one word longer."""
    return [
        Sample(
            id=f"q{i}",
            images=(tiny_image(i // 2),),
            question="w9 " * (i % 3 == 0) + f"w{10 + i} w50",
            answers=tuple(answers),
            kind="even" if i % 2 == 0 else "odd",
        )
        for i in range(count)
    ]


def tiny_settings(**changes: Any) -> Settings:
    chosen: dict[str, Any] = {
        "methods": (Method("greedy_repmax"), Method("mi_alignment(keep=0.8) >> random")),
        "budgets": (0.5, 2),
        "seeds": (0, 1),
        "batch_size": 3,
        "max_new_tokens": 2,
    }
    return Settings(**{**chosen, **changes})


def write_folder(folder: Path, count: int = 4) -> Path:
    """A data set on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        tiny_image(i).save(folder / f"{i}.png")
        lines.append(f'{{"id": "{i}", "image": "{i}.png", "question": "w{20 + i}", "answer": "w7", "kind": "k"}}\n')
    (folder / "data.jsonl").write_text("".join(lines))
    return folder
