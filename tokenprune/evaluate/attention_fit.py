"""FitPrune's offline fit on a model: from the attention of a few prompts to tokens to drop in each layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from tokenprune.baselines.fitprune import PEAKS, FitPrune, fitprune_fit
from tokenprune.core.fields import Layer, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import Pipeline, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.models import adapter_for, prune


@strategy("watch", register=False)
class _Watch(Stage):
    """Keep everything and note what is shown; for one reading."""

    layer: Layer = 1
    seen: list[Tensor] = field(default_factory=list, compare=False)
    needs = (PEAKS,)

    @property
    def place(self) -> InDecoder:
        """Within the layer before."""
        return InDecoder(self.layer, "compact", mid_layer=True)

    def choose(self, tokens: Tokens) -> Choice:
        """Keep everything."""
        self.seen.append(tokens[PEAKS].cpu())
        return Choice.everything(tokens.visual)


@torch.no_grad()
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
        watches = [_Watch(layer) for layer in range(1, layers + 1)]
        with prune(model, Pipeline(watches)):
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        images.extend(torch.stack(layers_of).float() for layers_of in zip(*(w.seen for w in watches), strict=True))
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
