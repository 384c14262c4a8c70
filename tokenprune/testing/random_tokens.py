"""Random `Tokens` that carry every signal a strategy may ask for."""

import torch

from tokenprune.tokens import Tokens


def random_tokens(
    rows: int = 6,
    columns: int = 8,
    *,
    width: int = 16,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tokens:
    """One image of `rows` x `columns` Gaussian tokens with every optional field filled.

    Args:
        rows: height of the token raster.
        columns: width of the token raster.
        width: d, the language model's width.
        text: m, number of text tokens; the last half of them is the question.
        seed: of the draw; also the image's `key`.
        dtype: of every floating point field.

    Examples:
        >>> random_tokens(2, 3).n
        6
    """
    draw = torch.Generator().manual_seed(seed)
    n = rows * columns

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    def attention(rows: int = 4) -> torch.Tensor:
        weights = torch.rand((rows, n), generator=draw, dtype=torch.float64)
        return (weights / weights.sum(1, keepdim=True)).to(dtype)

    return Tokens(
        normal(n, width),
        text=normal(text, width),
        question=torch.arange(text) >= text // 2,
        grid=(rows, columns),
        tiles=torch.arange(n) * 3 // n,
        tile_grid=(1, 2),
        key=seed,
        cls_attention=attention(),
        vision_states=normal(n, width),
        vision_keys=normal(n, 8),
        vision_cls=normal(1, width),
        vision_last_keys=normal(n, 12),
        vision_last_cls=normal(2, 12),
        clip_visual=normal(n, 10),
        clip_text=normal(2, 10),
        decoder_attention=attention(),
        decoder_next_attention=attention(),
        decoder_keys=normal(n, 8),
        decoder_states=normal(n, width),
        decoder_text_keys=normal(5, 8),
        decoder_text_states=normal(5, width),
        cls_attention_first=attention(),
        cls_attention_last=attention(),
        decoder_hidden=normal(n, width),
        decoder_text_attention=attention(5),
        decoder_peaks=attention(2),
        decoder_entered=normal(n, width),
        decoder_text=normal(5, width),
        project=torch.tanh,
    )
