"""Where visual tokens can be withdrawn: VTW's search over the layers of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.baselines.vtw import FIRST_LAYER, VTW, withdrawal_kl
from tokenprune.models import adapter_for, prune


@torch.no_grad()
def withdrawal_divergences(
    model: Any,  # noqa: ANN401
    prompts: Iterable[Mapping[str, Any]],
    *,
    first: int = FIRST_LAYER,
) -> dict[int, float]:
    """How much withdrawing all visual tokens at each layer changes the distribution of the first answer token.

    For every layer K the mean over prompts of KL(softmax(full) || softmax(withdrawn at K)), last token's logits.

    Args:
        model: a supported transformers model.
        prompts: what the processor returned, one mapping per prompt or padded batch.
        first: the first layer that is tried, at least 1.

    Returns:
        Mean divergence by layer, layers `first` to the last one.

    Raises:
        ValueError: when there is no prompt, or no layer to try.

    Examples:
        >>> from tokenprune.testing import tiny_llava
        >>> model, make_inputs = tiny_llava(layers=4)
        >>> list(withdrawal_divergences(model, [make_inputs(["what is in <0> then"])], first=1))
        [1, 2, 3]
    """
    layers = range(first, len(adapter_for(model).decoder_layers))
    batches = list(prompts)
    if not batches or not layers or first < 1:
        raise ValueError(
            f"withdrawal_divergences: nothing to try with {len(batches)} prompts and layers {first} to "
            f"{layers.stop - 1}; give prompts, and a first layer from 1 on that the model has"
        )
    full = torch.cat([_last_logits(model, inputs) for inputs in batches])
    found = {}
    for layer in layers:
        with prune(model, VTW(layer=layer)):
            withdrawn = torch.cat([_last_logits(model, inputs) for inputs in batches])
        found[layer] = float(withdrawal_kl(full, withdrawn))
    return found


def find_withdrawal_layer(
    model: Any,  # noqa: ANN401
    prompts: Iterable[Mapping[str, Any]],
    *,
    eta: float,
    first: int = FIRST_LAYER,
) -> int:
    """The first layer at which withdrawing all visual tokens changes the answer little enough: VTW's K for a model.

    The authors take 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-NeXT-7B, and begin at layer 5.

    Args:
        model: a supported transformers model.
        prompts: what the processor returned, one mapping per prompt or padded batch.
        eta: the largest mean divergence that is accepted.
        first: the first layer that is tried, at least 1.

    Raises:
        ValueError: when no layer is good enough.

    Examples:
        >>> from tokenprune.testing import tiny_llava
        >>> model, make_inputs = tiny_llava(layers=4)
        >>> find_withdrawal_layer(model, [make_inputs(["what is in <0> then"])], eta=float("inf"), first=1)
        1
    """
    divergences = withdrawal_divergences(model, prompts, first=first)
    for layer, divergence in divergences.items():
        if divergence <= eta:
            return layer
    raise ValueError(
        f"find_withdrawal_layer: no layer reaches eta={eta}; the lowest divergence is {min(divergences.values()):.3g}; "
        "raise eta, or withdraw nothing"
    )


def _last_logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:  # noqa: ANN401
    """Float32 (rows, vocabulary) of each prompt's last token, from one step of `generate`, which pads as it should."""
    output = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    logits: Tensor = output.logits[0].float()
    return logits
