"""Tiny random models built from a config: no files, no network, milliseconds per call."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from zlib import crc32

import torch
from torch import Tensor

PAD, BOS, EOS, IMAGE, FIRST_WORD, VOCABULARY = 0, 1, 2, 3, 4, 120
SIDE, PATCH = 28, 7
TOKENS = (SIDE // PATCH) ** 2
"""Visual tokens per image: a raster of 4 x 4."""


class MakeInputs(Protocol):
    """The processor of a tiny model: prompts in, arguments of the model out."""

    def __call__(self, prompts: Sequence[str], *, padding_side: str = "left") -> dict[str, Tensor]:
        """Make a batch.

        Args:
            prompts: words and images, as in "look at <0> and <7> now": <k> is random image number k, the same in every
                call; every other word is a token.
            padding_side: "left" or "right".

        Returns:
            `input_ids` and `attention_mask` int64 (b, l), and `pixel_values` float (images, 3, 28, 28) when a prompt
            has images.
        """


def tiny_llava(
    seed: int = 0,
    *,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    hidden: int = 32,
) -> tuple[Any, MakeInputs]:
    """A random `LlavaForConditionalGeneration` with a CLIP tower (CLS token, layer -2) and grouped-query attention.

    It never ends a sequence early: there is no end token in its generation config.

    Args:
        seed: seed of the weights; the global random state is left alone.
        attn_implementation: "sdpa" or "eager".
        dtype: of all weights.
        layers: decoder layers.
        hidden: width of the language model, a multiple of 8.

    Returns:
        The model in evaluation mode, and a function that makes its inputs.

    Examples:
        >>> model, make_inputs = tiny_llava()
        >>> inputs = make_inputs(["what is in <0>"])
        >>> inputs["input_ids"].shape, inputs["pixel_values"].shape
        (torch.Size([1, 20]), torch.Size([1, 3, 28, 28]))
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Wide enough that attention is not flat: a wrong mask or position moves the logits by much more than rounding.
        initializer_range=0.2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attn_implementation
    model = seeded(lambda: LlavaForConditionalGeneration(config), seed)
    _widen(model, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval(), _make_inputs


def random_image(number: int) -> Tensor:
    """Random image `number`, float (3, 28, 28); the same number is always the same image."""
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1000 + number))


def _make_inputs(prompts: Sequence[str], *, padding_side: str = "left") -> dict[str, Tensor]:
    rows: list[list[int]] = []
    images: list[Tensor] = []
    for prompt in prompts:
        row = [BOS]
        for word in prompt.split():
            image = re.fullmatch(r"<(\d+)>", word)
            if image:
                images.append(random_image(int(image[1])))
                row.extend([IMAGE] * TOKENS)
            else:
                row.append(FIRST_WORD + crc32(word.encode()) % (VOCABULARY - FIRST_WORD))
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if padding_side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {**inputs, "pixel_values": torch.stack(images)} if images else inputs


def seeded(build: Callable[[], Any], seed: int) -> Any:  # noqa: ANN401
    """What `build` makes under a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _widen(model: Any, seed: int) -> None:  # noqa: ANN401
    """Give the vision side weights under which images, and tokens of one image, differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.model.vision_tower, model.model.multi_modal_projector):
            for parameter in part.parameters():
                if parameter.ndim >= 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
