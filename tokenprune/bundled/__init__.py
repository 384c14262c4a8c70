"""A small LLaVA, trained by this project, with the scenes and questions it was trained and tested on.

It is a laboratory animal: a real ``LlavaForConditionalGeneration`` (256 visual tokens, about 2 million parameters) that
answers one-word questions about cards on photographs, so that accuracy against kept tokens is measured on any machine,
offline. Conclusions hold for it; see ``model/MODEL_CARD.md``.

transformers and scikit-learn are imported when a function needs them, not with this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tokenprune.bundled.questions import COVERAGE, KINDS, LOOKUPS
from tokenprune.bundled.scenes import Card, Question, Scene, make_scene
from tokenprune.bundled.tokenizer import TOKENS_PER_IMAGE, prompt

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = [
    "COVERAGE",
    "KINDS",
    "LOOKUPS",
    "MODEL_DIR",
    "TOKENS_PER_IMAGE",
    "Card",
    "Question",
    "Scene",
    "load_model",
    "load_processor",
    "load_scenes",
    "make_scene",
    "prompt",
]

MODEL_DIR: Final[Path] = Path(__file__).parent / "model"
"""Folder with weights, configuration, tokenizer and processor; ``from_pretrained`` accepts it."""


def load_model(
    dtype: torch.dtype = torch.float32, *, attn_implementation: str = "sdpa"
) -> LlavaForConditionalGeneration:
    """The bundled model on the CPU, in evaluation mode.

    Args:
        dtype: floating dtype to load into; the weights are stored as float16.
        attn_implementation: "sdpa" or "eager" (the latter returns attention weights), as in transformers.

    Returns:
        The model.

    Raises:
        TypeError: ``dtype`` is not a floating torch dtype.
        ImportError: transformers is not installed.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"load_model: dtype must be a floating torch dtype such as torch.float32, got {dtype!r}")
    from transformers import LlavaForConditionalGeneration
    from transformers.utils import logging

    # A progress bar for loading 4 MB is noise; the caller's setting comes back.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            MODEL_DIR, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    model.eval()
    return model


def load_processor() -> LlavaProcessor:
    """The bundled processor: image processor, tokenizer and chat template; one image becomes 256 image tokens.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import LlavaProcessor

    processor: LlavaProcessor = LlavaProcessor.from_pretrained(MODEL_DIR, local_files_only=True)
    return processor


def load_scenes(split: str = "test", count: int = 60, seed: int = 0) -> list[Scene]:
    """Scenes with ground truth and one question of each kind, made on the fly from images that ship with scikit-learn.

    Args:
        split: "train", "validation" or "test"; no digit image and no photo strip is shared between them.
        count: number of scenes, at least 1; a scene has 8 questions.
        seed: which series of scenes; scene i of a series does not depend on ``count``.

    Returns:
        The scenes; the same arguments always give the same list.

    Raises:
        ValueError: an argument is out of range.
        ImportError: scikit-learn is not installed.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"load_scenes: count must be a positive int, got {count!r}")
    return [make_scene(split, seed, index) for index in range(count)]
