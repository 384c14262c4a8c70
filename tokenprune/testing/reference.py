"""A slow generator that knows nothing of padding, caches or this package: what pruned models are compared with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Reference(NamedTuple):
    """Logits float (steps, v) of every decoding step, and the greedy tokens int64 (steps,) that followed from them."""

    logits: Float[Tensor, "steps v"]
    tokens: Int[Tensor, " steps"]


def reference_logits(
    model: Any,  # noqa: ANN401
    ids: Int[Tensor, " l"],
    features: Sequence[Float[Tensor, "n d"]],
    kept: Sequence[Int[Tensor, " k"]],
    *,
    positions: str = "compact",
    steps: int = 4,
    tokens: Int[Tensor, " steps"] | None = None,
    masked: bool = False,
) -> Reference:
    """Decode one prompt by running the language model over everything again for each token.

    The prompt is put together column by column in plain Python; each step is one forward without cache or padding, with
    an explicit four-dimensional mask and explicit positions.

    Args:
        model: a LLaVA-like model: `get_input_embeddings`, `config.image_token_id`, and a forward that takes
            `inputs_embeds`, a 4-D `attention_mask` and `position_ids`.
        ids: one prompt without padding, with one placeholder per visual token.
        features: of each image of the prompt its projected tokens, one row per placeholder.
        kept: of each image the indices of the tokens that stay, in the order in which they enter.
        positions: "original" or "compact".
        steps: number of decoding steps.
        tokens: feed these instead of the greedy ones (for comparing logits after a different choice).
        masked: leave dropped tokens in their places and mask them instead of removing them; needs "original" positions
            and ascending indices.

    Returns:
        Logits of every step and the greedy tokens.
    """
    if masked and positions != "original":
        raise ValueError(f"reference_logits: masked=True needs positions='original', got {positions!r}")
    embeds, places, visible = _lay_out(model, ids, features, kept, masked=masked)
    if positions == "compact":
        places = list(range(len(places)))
    logits, chosen = [], []
    for step in range(steps):
        length = len(embeds)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & torch.tensor(visible)
        seen |= torch.eye(length, dtype=torch.bool)  # a masked token sees itself, lest its row of the softmax be empty
        block = torch.zeros(length, length, dtype=embeds[0].dtype).masked_fill(~seen, torch.finfo(embeds[0].dtype).min)
        with torch.no_grad():
            output = model(
                inputs_embeds=torch.stack(embeds)[None],
                attention_mask=block[None, None].to(embeds[0].device),
                position_ids=torch.tensor([places], device=embeds[0].device),
                use_cache=False,
            )
        logits.append(output.logits[0, -1].float().cpu())
        chosen.append(logits[-1].argmax())
        following = chosen[-1] if tokens is None else tokens[step].cpu()
        embeds.append(model.get_input_embeddings()(following.to(embeds[0].device)).detach())
        places.append(places[-1] + 1)
        visible.append(True)
    return Reference(torch.stack(logits), torch.stack(chosen))


def _lay_out(
    model: Any,  # noqa: ANN401
    ids: Tensor,
    features: Sequence[Tensor],
    kept: Sequence[Tensor],
    *,
    masked: bool,
) -> tuple[list[Tensor], list[int], list[bool]]:
    """Embedding, original position and visibility of every column that stays."""
    table = model.get_input_embeddings()
    embeds: list[Tensor] = []
    places: list[int] = []
    visible: list[bool] = []
    image = token = 0
    queue: list[int] = []  # kept tokens of the current image that have not entered yet
    for column, value in enumerate(ids.tolist()):
        if value != model.config.image_token_id:
            embeds.append(table(ids[column]).detach())
            places.append(column)
            visible.append(True)
            continue
        if token == 0:
            first, queue = column, kept[image].tolist()
        stays = token in kept[image].tolist()
        if stays or masked:
            source = queue.pop(0) if stays else token
            embeds.append(features[image][source].detach().to(embeds[0]))
            places.append(first + source)
            visible.append(stays)
        token += 1
        if token == len(features[image]):
            image, token = image + 1, 0
    return embeds, places, visible
