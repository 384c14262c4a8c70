"""A slow generator that knows nothing of padding, caches or this package: what pruned models are compared with."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Reference(NamedTuple):
    """Logits float (steps, v) of every decoding step, and the greedy tokens int64 (steps,) that followed from them."""

    logits: Float[Tensor, "steps v"]
    tokens: Int[Tensor, " steps"]


Forward = Callable[
    [Float[Tensor, "n d"], Bool[Tensor, "n n"], Int[Tensor, "*axes n"], Sequence[int]], Float[Tensor, " v"]
]
"""From the columns that are there, which of them each one sees, their positions and their columns in the dense prompt
(from its length on for generated tokens) to the logits behind the last one."""


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
    places: Int[Tensor, "*axes l"] | None = None,
    placeholders: Collection[int] | None = None,
    forward: Forward | None = None,
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
        positions: "original" or "compact". With several axes a token has its own place in its image in whatever order
            it enters, with one axis that of the slot which it enters.
        steps: number of decoding steps.
        tokens: feed these instead of the greedy ones (for comparing logits after a different choice).
        masked: leave dropped tokens in their places and mask them instead of removing them; needs "original" positions
            and ascending indices.
        places: positions of the dense prompt, with axes in front for models with several; default 0, 1, 2, ...
        placeholders: ids that visual tokens replace; default the model's image token.
        forward: runs the language model on what is there; default for models with causal masks.

    Returns:
        Logits of every step and the greedy tokens.
    """
    if masked and positions != "original":
        raise ValueError(f"reference_logits: masked=True needs positions='original', got {positions!r}")
    dense = torch.arange(len(ids)) if places is None else places.cpu()
    tokens_of_images = {int(model.config.image_token_id)} if placeholders is None else set(placeholders)
    embeds, columns, visible = _lay_out(model, ids, features, kept, tokens_of_images, masked=masked)
    following = dense[..., -1] + 1
    order = columns
    if positions == "compact":
        visual = [column for column, value in enumerate(ids.tolist()) if value in tokens_of_images]
        images = [own.tolist() for own in torch.tensor(visual).split([len(f) for f in features])] if features else []
        dense, following = closed_places(dense, images, [indices.tolist() for indices in kept])
        order = sorted(columns) if dense.ndim == 1 else columns
    where = dense[..., order]
    run = _causal_forward(model) if forward is None else forward
    logits, chosen = [], []
    for step in range(steps):
        length = len(embeds)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & torch.tensor(visible)
        seen |= torch.eye(length, dtype=torch.bool)  # a masked token sees itself, lest its row of the softmax be empty
        with torch.no_grad():
            logits.append(run(torch.stack(embeds), seen, where, columns).float().cpu())
        chosen.append(logits[-1].argmax())
        token = chosen[-1] if tokens is None else tokens[step].cpu()
        embeds.append(model.get_input_embeddings()(token.to(embeds[0].device)).detach())
        where = torch.cat([where, following[..., None] + step], dim=-1)
        columns.append(len(ids) + step)
        visible.append(True)
    return Reference(torch.stack(logits), torch.stack(chosen))


def closed_places(
    places: Int[Tensor, "*axes l"], images: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "*axes l"], Int[Tensor, "*axes"]]:
    """Positions of the policy "compact" by loops: see `tokenprune.models.prompt.places` for the rule.

    Args:
        places: positions of one dense prompt.
        images: of each image its columns, ascending.
        kept: of each image the indices of the tokens that stay.

    Returns:
        Positions of all columns, those of dropped tokens without a meaning, and of the first token after the prompt.
    """
    if places.ndim == 1:
        return _counted(places, images, kept)
    dense = places.tolist()
    new = [list(axis) for axis in dense]
    length, moved, column = len(dense[0]), 0, 0
    following = [axis[-1] + 1 for axis in dense]
    owner = {c: number for number, columns in enumerate(images) for c in columns}
    stays = {images[number][index] for number, indices in enumerate(kept) for index in indices}
    while column < length:
        end = column + 1
        if column not in owner:
            for axis in new:
                axis[column] -= moved
        else:
            while end < length and owner.get(end) == owner[column]:
                end += 1
            before = min(axis[c] for axis in dense for c in range(column, end)) - 1
            tops, kept_tops = [], []
            for axis, old in zip(new, dense, strict=True):
                whole = sorted({old[c] for c in range(column, end)})
                left = sorted({old[c] for c in range(column, end) if c in stays})
                for c in range(column, end):
                    if c in stays:
                        axis[c] = whole[left.index(old[c])] - moved
                tops.append(whole[-1])
                kept_tops.append(whole[len(left) - 1] if left else before)
            if end == length:
                following = [n + kept - top for n, kept, top in zip(following, kept_tops, tops, strict=True)]
            else:
                follows = min(axis[end] for axis in dense)
                pushing = [i for i, top in enumerate(tops) if top < follows]
                if pushing:
                    moved += max(tops[i] for i in pushing) - max(kept_tops[i] for i in pushing)
        column = end
    return torch.tensor(new), torch.tensor([n - moved for n in following])


def _counted(places: Tensor, images: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The same for one axis: a row that is whole stays as it is, another counts up from its first position."""
    gone = {c for columns, own in zip(images, kept, strict=True) for i, c in enumerate(columns) if i not in own}
    if not gone:
        return places, places[-1] + 1
    new, count = places.clone(), int(places[0])
    for column in range(len(places)):
        new[column] = count
        count += column not in gone
    return new, torch.tensor(count)


def _causal_forward(model: Any) -> Forward:  # noqa: ANN401
    def run(embeds: Tensor, seen: Tensor, places: Tensor, columns: Sequence[int]) -> Tensor:
        output = model(
            inputs_embeds=embeds[None],
            attention_mask=additive(seen, embeds.dtype).to(embeds.device),
            position_ids=places[None].to(embeds.device),
            use_cache=False,
        )
        logits: Tensor = output.logits[0, -1]
        return logits

    return run


def additive(seen: Bool[Tensor, "n n"], dtype: torch.dtype) -> Float[Tensor, "1 1 n n"]:
    """A mask to add to attention logits: 0 where a column is seen, the lowest number elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]


def _lay_out(
    model: Any,  # noqa: ANN401
    ids: Tensor,
    features: Sequence[Tensor],
    kept: Sequence[Tensor],
    placeholders: Collection[int],
    *,
    masked: bool,
) -> tuple[list[Tensor], list[int], list[bool]]:
    """Embedding, column in the dense prompt and visibility of every column that stays."""
    table = model.get_input_embeddings()
    embeds: list[Tensor] = []
    columns: list[int] = []
    visible: list[bool] = []
    image = token = 0
    queue: list[int] = []  # kept tokens of the current image that have not entered yet
    places: list[int] = []  # columns of the current image
    visual = [column for column, value in enumerate(ids.tolist()) if value in placeholders]
    for column in range(len(ids)):
        if column not in visual:
            embeds.append(table(ids[column]).detach())
            columns.append(column)
            visible.append(True)
            continue
        if token == 0:
            start = visual.index(column)
            places, queue = visual[start : start + len(features[image])], kept[image].tolist()
        stays = token in kept[image].tolist()
        if stays or masked:
            source = queue.pop(0) if stays else token
            embeds.append(features[image][source].detach().to(embeds[0]))
            columns.append(places[source])
            visible.append(stays)
        token += 1
        if token == len(features[image]):
            image, token = image + 1, 0
    return embeds, columns, visible
