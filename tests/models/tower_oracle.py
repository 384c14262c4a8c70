"""ToMe in a vision tower, one image at a time in plain loops: what the models' merging is compared with."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenprune.testing.tiny.models import IMAGE, PATCH, SIDE, TOKENS, MakeInputs, tiny_llava


@lru_cache
def tower_llava(kind: str = "clip", attention: str = "sdpa", layers: int = 5) -> tuple[Any, MakeInputs]:
    """A tiny LLaVA whose tower has some more layers: CLIP with a CLS token, layer -2; or SigLIP without, layer -1."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    plain, make_inputs = tiny_llava(attn_implementation=attention)
    shape: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape) if kind == "clip" else SiglipVisionConfig(**shape),
        text_config=plain.config.text_config,
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=-2 if kind == "clip" else -1,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlavaForConditionalGeneration(config).eval()
        model.model.language_model.load_state_dict(plain.model.language_model.state_dict())
        model.lm_head.load_state_dict(plain.lm_head.state_dict())
        with torch.no_grad():
            for part in (model.model.vision_tower, model.model.multi_modal_projector):
                for parameter in part.parameters():
                    if parameter.ndim >= 2:
                        torch.nn.init.normal_(parameter, std=0.25)
    model.generation_config = plain.generation_config
    return model, make_inputs


@dataclass
class Row:
    """One token of the sequence: its state, how many patches it stands for and which, and whose place it takes."""

    x: Tensor
    size: float
    place: int
    members: list[int]


class Merged(NamedTuple):
    """What comes out: rows in order of their places, and what was read on the way."""

    features: Tensor
    places: list[int]
    sizes: list[int]
    members: list[list[int]]
    cls_attention: Tensor | None
    keys: Tensor


def merged_image(
    model: Any, pixels: Tensor, merges: list[int], *, proportional: bool = True, gradient: bool = False
) -> Merged:
    """One image through the tower with the given merges per layer, then through the projector."""
    tower, config = model.model.vision_tower, model.config
    with torch.set_grad_enabled(gradient):
        x = tower.embeddings(pixels[None])
        x = tower.pre_layrnorm(x)[0] if hasattr(tower, "pre_layrnorm") else x[0]
        cls = config.vision_feature_select_strategy == "default"
        rows = [Row(row, 1.0, i, [i]) for i, row in enumerate(x)]
        attention, keys = None, None
        for layer, count in zip(tower.encoder.layers, merges, strict=False):
            rows, attention, keys = _layer(layer, rows, count, cls=cls, proportional=proportional)
        patches = sorted((row for row in rows if not cls or row.place > 0), key=lambda row: row.place)
        features = model.model.multi_modal_projector(torch.stack([row.x for row in patches]))
    assert keys is not None
    order = [next(i for i, row in enumerate(rows) if row is patch) for patch in patches]
    return Merged(
        features,
        [row.place - cls for row in patches],
        [int(row.size) for row in patches],
        [[member - cls for member in row.members] for row in patches],
        attention[:, order] if cls and attention is not None else None,
        keys[order],
    )


def _layer(
    layer: Any, rows: list[Row], count: int, *, cls: bool, proportional: bool
) -> tuple[list[Row], Tensor, Tensor]:
    attend = layer.self_attn
    heads = attend.num_heads
    normed = layer.layer_norm1(torch.stack([row.x for row in rows]))
    q, k, v = (
        projection(normed).unflatten(-1, (heads, -1)) for projection in (attend.q_proj, attend.k_proj, attend.v_proj)
    )
    outputs, first = [], []
    for head in range(heads):
        logits = q[:, head] @ k[:, head].T / math.sqrt(q.shape[-1])
        if proportional:
            logits = logits + torch.tensor([math.log(row.size) for row in rows])
        weights = logits.softmax(-1)
        first.append(weights[0])
        outputs.append(weights @ v[:, head])
    attended = attend.out_proj(torch.cat(outputs, dim=-1))
    rows = [Row(row.x + more, row.size, row.place, row.members) for row, more in zip(rows, attended, strict=True)]
    metric = k.mean(1)
    groups = _groups(metric.detach(), count, cls=cls)
    attention = torch.stack([torch.stack(first)[:, group].sum(1) for group in groups], dim=1)
    keys = torch.stack([sum(metric[i] * rows[i].size for i in g) / sum(rows[i].size for i in g) for g in groups])
    merged = []
    for group in groups:
        size = sum(rows[i].size for i in group)
        x = sum((rows[i].x * rows[i].size for i in group), torch.zeros_like(rows[0].x)) / size
        members = sorted(member for i in group for member in rows[i].members)
        merged.append(Row(x, size, rows[group[0]].place, members))
    states = torch.stack([row.x for row in merged])
    states = states + layer.mlp(layer.layer_norm2(states))
    return [Row(x, row.size, row.place, row.members) for x, row in zip(states, merged, strict=True)], attention, keys


def _groups(metric: Tensor, count: int, *, cls: bool) -> list[list[int]]:
    """Rows of the new sequence as lists of old rows; the first of each list gives the place."""
    n = len(metric)
    links = []
    for a in range(0, n, 2):
        if cls and a == 0:
            continue
        best, partner = -2.0, -1
        for b in range(1, n, 2):
            cosine = float(torch.nn.functional.cosine_similarity(metric[a], metric[b], dim=0))
            if cosine > best:
                best, partner = cosine, b
        links.append((best, a, partner))
    links.sort(key=lambda link: -link[0])
    count = min(count, (n - cls) // 2)
    joined = links[:count]
    alone = [a for _, a, _ in links[count:]]
    # Without a CLS token the program leaves those that stay alone in the order of their links.
    alone = [0, *sorted(alone)] if cls else (list(range(0, n, 2)) if count == 0 else alone)
    into: dict[int, list[int]] = {b: [b] for b in range(1, n, 2)}
    for _, a, b in joined:
        into[b].append(a)
    if count == 0:
        return [[i] for i in range(n)]
    return [[a] for a in alone] + [into[b] for b in range(1, n, 2)]
