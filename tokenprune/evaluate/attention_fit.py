"""FitPrune's offline fit on a model: from the attention of a few prompts to tokens to drop in each layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.baselines.fitprune import PEAKS, FitPrune, fitprune_fit
from tokenprune.models import adapter_for, read_layers


def read_peaks(model: Any, prompts: Iterable[Mapping[str, Any]]) -> list[Tensor]:  # noqa: ANN401
    """`PEAKS` of every decoder layer of the untouched model.

    Args:
        model: a supported transformers model.
        prompts: what the processor returned, one mapping per prompt or padded batch.

    Returns:
        For each image float32 (layers, 2, n): attention that each of its tokens gets from image and from text tokens.
    """
    layers = len(adapter_for(model).decoder_layers)
    images: list[Tensor] = []
    for inputs in prompts:
        found = read_layers(model, inputs, [PEAKS], range(1, layers + 1))
        images.extend(
            torch.stack([tokens[PEAKS].cpu() for tokens in of_layers]).float() for of_layers in zip(*found, strict=True)
        )
    return images


def fit_fitprune(model: Any, prompts: Sequence[Mapping[str, Any]], *, reduction: float) -> FitPrune:  # noqa: ANN401
    """FitPrune with numbers of dropped tokens that were fitted to this model.

    The rule is that of `tokenprune.baselines.fitprune.fitprune_fit`; operations are those of image tokens alone.

    Args:
        model: a supported transformers model.
        prompts: what the processor returned, one mapping per prompt or padded batch; all images of equal size. The
            authors take a few hundred.
        reduction: share of the operations to save, in (0, 1).

    Raises:
        ValueError: when there is no image, images differ in size, or the reduction is not in (0, 1).

    Examples:
        >>> from tokenprune.testing import tiny_llava
        >>> model, make_inputs = tiny_llava(layers=4)
        >>> len(fit_fitprune(model, [make_inputs(["what is in <0> then"])], reduction=0.5).drops)
        4
    """
    images = read_peaks(model, prompts)
    sizes = {image.shape[-1] for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"fit_fitprune: {len(images)} images of {sorted(sizes)} tokens; give prompts with images of one size"
        )
    peaks, config = torch.stack(images), adapter_for(model).decoder.config
    drops = fitprune_fit(
        peaks[:, :, 0], peaks[:, :, 1], reduction=reduction, width=config.hidden_size, ffn=config.intermediate_size
    )
    return FitPrune(drops)
