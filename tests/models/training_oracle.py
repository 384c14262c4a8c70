"""What tests of training share: losses made by hand, and derivatives by differences."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.models.decoder_oracle import Decoder, Row, Stage, View, enter, run_layers
from tokenprune.models.reading.vision import image_keys

GROUPS = {"projector": "multi_modal_projector", "tower": "vision_tower", "language": "language_model"}
"""Parts of a tiny LLaVA and what the names of their parameters contain."""


def made_double(model: Any) -> Any:
    """A model whose every step is in float64; norms of language models compute in float32 whatever they are given."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
    return model


def _norm(module: Any, x: Tensor) -> Tensor:
    normed: Tensor = module.weight * x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return normed


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def labels_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Every word of the prompts, neither images nor padding."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels: Tensor = ids.masked_fill((ids == model.config.image_token_id) | (mask == 0), -100)
    return labels


def parameters_of(model: Any, group: str) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if GROUPS[group] in name]


def gradients(model: Any) -> dict[str, Tensor]:
    """The gradient of every parameter, zero where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def slope(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], seed: int, step: float = 1e-6
) -> tuple[float, float]:
    """The loss's derivative along a random direction: by autograd, and by differences of the loss itself."""
    generator = torch.Generator().manual_seed(seed)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    found = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
    told = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True) if g is not None)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            _move(parameters, direction, sign * step)
            values.append(float(loss().detach()))
            _move(parameters, direction, -sign * step)
    return told, (values[0] - values[1]) / (2 * step)


def _move(parameters: Iterable[Tensor], direction: Iterable[Tensor], by: float) -> None:
    for parameter, along in zip(parameters, direction, strict=True):
        parameter += by * along


def rows_of(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor, slice]]:
    """For each prompt, without padding: ids, labels, and which of the batch's images are its own."""
    rows, start = [], 0
    for ids, mask, told in zip(inputs["input_ids"], inputs["attention_mask"].bool(), labels, strict=True):
        count = int((ids[mask] == model.config.image_token_id).sum()) // 16
        rows.append((ids[mask], told[mask], slice(start, start + count)))
        start += count
    return rows


def loss_of_embeddings(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, features: Sequence[Tensor], kept: Sequence[Tensor]
) -> Tensor:
    """The mean loss of prompts that are put together by hand.

    The rows of `features[image]` enter in their order, at the columns of the tokens `kept[image]`.
    """
    losses = []
    for ids, told, mine in rows_of(model, inputs, labels):
        pairs = zip(features[mine], kept[mine], strict=True)
        whole = [torch.zeros(16, f.shape[1], dtype=f.dtype).index_copy(0, k.sort().values, f) for f, k in pairs]
        embeds, columns, _ = enter(model, ids, whole, kept[mine])
        places = torch.arange(len(columns))[None]
        output = model(inputs_embeds=torch.stack(embeds)[None], position_ids=places, use_cache=False)
        losses.extend(row_losses(output.logits[0], columns, told))
    return torch.stack(losses).mean()


def row_losses(logits: Tensor, columns: Sequence[int], labels: Tensor) -> list[Tensor]:
    """The loss of each label that something stands before. Columns of 1000 and more were made on the way."""
    return [
        cross_entropy(logits[i - 1], labels[column])
        for i, column in enumerate(columns)
        if i and column < 1000 and labels[column] != -100
    ]


def loss_inside(
    model: Any,
    inputs: dict[str, Tensor],
    labels: Tensor,
    stages: Sequence[Stage],
    *,
    features: Sequence[Tensor] | None = None,
    items: float | None = None,
) -> Tensor:
    """The loss under stages inside the hand-made language model; `items` divides the sum in place of the mean."""
    decoder = Decoder(model)
    if features is None:
        features = list(model.get_image_features(inputs["pixel_values"]).pooler_output)
    keys, losses = list(image_keys(inputs["pixel_values"])), []
    for ids, told, mine in rows_of(model, inputs, labels):
        before = [torch.arange(len(image)) for image in features[mine]]
        embeds, columns, images = enter(model, ids, features[mine], before)
        row = Row(decoder, torch.stack(embeds), torch.arange(len(embeds)), len(embeds), images)
        run_layers(row, before, keys[mine], [stage._replace(rule=_without_gradient(stage.rule)) for stage in stages])
        logits = model.lm_head(decoder.norm(row.x, decoder.text.norm))
        losses.extend(row_losses(logits, [columns[c] if c < 1000 else c for c in row.alive], told))
    total = torch.stack(losses)
    return total.mean() if items is None else total.sum() / items


def _without_gradient(rule: Any) -> Any:
    """A rule sees numbers, but what it makes of hidden states is connected to them."""

    def plain(view: View) -> Any:
        told = {
            name: value.detach() if isinstance(value, Tensor) else [v.detach() for v in value]
            for name, value in view._asdict().items()
            if name in ("attention", "keys", "normed", "text_embeds", "entered")
        }
        return rule(view._replace(**told))  # type: ignore[arg-type]

    return plain
