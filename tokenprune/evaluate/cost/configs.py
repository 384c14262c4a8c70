"""Model configurations as code: what speed depends on, without a download; and random models made from them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.models.families.registry import adapters

_IMAGE, _PAD = 32000, 32001


def _llava(model: str, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

    cls = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}[model]
    return cls(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **vision),
        text_config=LlamaConfig(max_position_embeddings=4096, **text),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        **more,
    )


_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
_VICUNA_7B = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
}


def llava_15_7b() -> Any:  # noqa: ANN401
    """LLaVA-1.5-7B: Vicuna-7B behind CLIP ViT-L/14 at 336 pixels, 576 visual tokens."""
    return _llava("llava", _CLIP_LARGE, _VICUNA_7B, image_token_index=_IMAGE, pad_token_id=_PAD)


def llava_next_7b() -> Any:  # noqa: ANN401
    """LLaVA-NeXT-7B on Vicuna: the same parts, a picture in up to five tiles of 576 tokens and newline tokens."""
    return _llava(
        "llava_next",
        _CLIP_LARGE,
        _VICUNA_7B,
        image_token_index=_IMAGE,
        pad_token_id=_PAD,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        use_image_newline_parameter=True,
    )


def tiny() -> Any:  # noqa: ANN401
    """A model of LLaVA-1.5's form and number of visual tokens, small enough for a CPU: width 256, four layers."""
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "projection_dim": 128,
    }
    text = {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
    }
    return _llava("llava", vision, text, image_token_index=2000, pad_token_id=2001)


CONFIGS: dict[str, Callable[[], Any]] = {
    "tiny": tiny,
    "llava-1.5-7b": llava_15_7b,
    "llava-next-7b": llava_next_7b,
}
"""Configurations by the name that the command line takes."""


def find_config(name: str) -> Any:  # noqa: ANN401
    """A configuration by name, or that of a folder written by `save_pretrained`.

    Args:
        name: one of `CONFIGS`, or the path of a folder or of its config.json.

    Raises:
        ValueError: when there is neither, or no adapter serves the family.
    """
    if name in CONFIGS:
        config = CONFIGS[name]()
    else:
        path = Path(name).expanduser()
        folder = path.parent if path.name == "config.json" else path
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--config must be one of {', '.join(CONFIGS)} or a folder with config.json, got {name!r}; "
                f"there is no {folder / 'config.json'}"
            )
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
    served = {kind for adapter in adapters() for kind in adapter.model_types}
    if config.model_type not in served:
        raise ValueError(
            f"--config {name}: no adapter prunes the family {config.model_type!r} yet (there are "
            f"{', '.join(sorted(served))}); choose a configuration of one of these"
        )
    if config.model_type not in _PICTURES:
        raise ValueError(
            f"--config {name}: it is not known how pictures enter the family {config.model_type!r} "
            f"(known: {', '.join(sorted(_PICTURES))}); choose a configuration of one of these"
        )
    return config


def random_model(
    config: Any,  # noqa: ANN401
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    seed: int = 0,
) -> Any:  # noqa: ANN401
    """A model with random weights, made where it will run; speed does not depend on their values.

    It never ends a sequence early.

    Args:
        config: of the model.
        device: "meta" makes a model without memory, to count parameters and operations.
        dtype: of all weights.
        attention: the attention backend.
        seed: of the weights.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _one_picture(config: Any, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:  # noqa: ANN401
    vision = config.vision_config
    shape = (batch, vision.num_channels, vision.image_size, vision.image_size)
    return {"pixel_values": torch.randn(shape, device=device).to(dtype)}


def _tiled_picture(config: Any, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:  # noqa: ANN401
    vision = config.vision_config
    side = vision.image_size
    # A square picture of two tiles by two, and the whole of it once more: the most tokens that there can be.
    shape = (batch, 5, vision.num_channels, side, side)
    sizes = torch.tensor([[2 * side, 2 * side]] * batch, device=device)
    return {"pixel_values": torch.randn(shape, device=device).to(dtype), "image_sizes": sizes}


_PICTURES = {"llava": _one_picture, "llava_next": _tiled_picture}


def random_pictures(
    config: Any,  # noqa: ANN401
    batch: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """One picture of noise per prompt, as the family's processor would hand it to the model."""
    return _PICTURES[config.model_type](config, batch, dtype, device)


def random_prompts(
    config: Any,  # noqa: ANN401
    counts: Sequence[int],
    text: int,
    *,
    device: torch.device,
) -> dict[str, Tensor]:
    """Prompts of equal length: half of the text, one picture, the other half.

    Args:
        config: of the model.
        counts: visual tokens of each prompt's picture.
        text: text tokens per prompt, at least 2.
        device: where they go.

    Raises:
        ValueError: when the pictures differ in size, or there is too little text.
    """
    if len(set(counts)) != 1 or text < 2:
        raise ValueError(
            f"random_prompts: counts must be equal and text 2 or more, got {sorted(set(counts))} and {text}"
        )
    image = config.image_token_id
    ids = torch.randint(0, config.get_text_config().vocab_size - 1, (len(counts), text), device=device)
    ids += ids >= image  # every word but the placeholder
    picture = torch.full((len(counts), counts[0]), image, device=device)
    ids = torch.cat([ids[:, : text // 2], picture, ids[:, text // 2 :]], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def visual_tokens(config: Any) -> int:  # noqa: ANN401
    """Visual tokens of one picture from `random_pictures`, by formula (newline tokens of LLaVA-NeXT included)."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    if config.model_type == "llava_next":
        return side * side + 2 * side * (2 * side + 1)
    return int(side * side)
