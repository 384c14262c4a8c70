"""The saved tokenizer and processor: word-level, left-padded, with a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenprune.bundled.cards import GRID, PATCH, SIDE
from tokenprune.bundled.vocabulary import ASSISTANT, BOS, EOS, IDS, IMAGE, PAD, SYSTEM, UNK, USER

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

MEAN: Final = (0.5, 0.5, 0.5)
"""Mean that the image processor subtracts, per RGB channel, for pixels from 0 to 1."""
STD: Final = (0.25, 0.25, 0.25)
"""Standard deviation that the image processor divides by."""

CHAT_TEMPLATE: Final = (
    SYSTEM
    + "{% for message in messages %}"
    + "{% if message['role'] == 'user' %} "
    + USER
    + "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    + "{% for part in message['content'] %}"
    + "{% if part['type'] == 'image' %} "
    + IMAGE
    + "{% else %} {{ part['text'] }}{% endif %}"
    + "{% endfor %}{% endif %}"
    + "{% else %} "
    + ASSISTANT
    + "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    + "{% for part in message['content'] %} {{ part['text'] }}{% endfor %}{% endif %} "
    + EOS
    + "{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %} "
    + ASSISTANT
    + "{% endif %}"
)
"""Renders to ``answer in one word . user : <image> which digit is on red ? assistant :``; the tokenizer adds BOS."""


def prompt(question: str) -> str:
    """The whole prompt for one question about one image, as the chat template renders it.

    Args:
        question: a question's text, for instance from ``Question.text``.

    >>> prompt("is there a seven ?")
    'answer in one word . user : <image> is there a seven ? assistant :'
    """
    return f"{SYSTEM} {USER} {IMAGE} {question} {ASSISTANT}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of ``vocabulary.WORDS``: lowercases, splits at spaces and punctuation, adds BOS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocab=dict(IDS), unk_token=UNK))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, IDS[BOS])]
    )
    special: dict[str, Any] = {"image_token": IMAGE}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=special,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> LlavaProcessor:
    """The processor: images to 128 x 128 pixels, and one image placeholder expanded to exactly 256 image tokens."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


TOKENS_PER_IMAGE: Final = GRID * GRID
"""Image tokens that the processor writes for one image."""
