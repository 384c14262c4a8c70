"""Every family against references that know nothing of padding or caches: what differs between families, and checks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.models.decoder_oracle import Stage, View
from tokenprune import PruningStrategy, prune
from tokenprune.core.places import Positions
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.models import Record, adapter_for
from tokenprune.testing import reference_logits
from tokenprune.testing.reference import Forward, additive, closed_places
from tokenprune.testing.tiny.families import tiny_families, tiny_model
from tokenprune.testing.tiny.models import MakeInputs

FAMILIES = [family for family in tiny_families() if family != "llava"]  # LLaVA-1.5 has tests of its own
IN_DECODER = [family for family in FAMILIES if family != "gemma3"]
STEPS = 4
LAYERS = 4

# Images with numbers that differ by 4 have the same size.
BATCHES = {
    "padded": ["look at <0> now", "<1> what is it", "tell me more about the things in <2> please"],
    "equal length": ["look at <0> now", "what of <4> here", "and in <8> then"],
    "one row": ["what is in <3> then"],
    "several images": ["compare <0> with <5> please", "here is <1>", "no image at all"],
}
VIDEO_BATCHES = {
    "videos": ["what moves in [0] there", "look at [1] now please", "nothing to see"],
    "a video and an image": ["first <0> then [2] and now", "in [3] you see <1> twice"],
}


@cache
def tiny(family: str, attention: str = "sdpa") -> tuple[Any, MakeInputs]:
    """One model of each kind for all tests: a leak from one to another is a failure, too."""
    return tiny_model(family, attn_implementation=attention, layers=LAYERS)


class Dense:
    """One row of a batch as the language model would get it without pruning, from the model's own methods."""

    def __init__(self, family: str, inputs: dict[str, Tensor], row: int, sizes: Sequence[int]) -> None:
        self.family, self.inputs, self.row = family, inputs, row
        self.model = tiny(family, "eager")[0]
        self.base = self.model.model
        self.text: Any = getattr(self.base, "language_model", None) or self.base.text_model
        config = self.model.config
        self.placeholders = {config.image_token_id, getattr(config, "video_token_id", config.image_token_id)}
        self.real = inputs["attention_mask"][row].bool()
        self.ids = inputs["input_ids"][row][self.real]
        streams = all_features(family, inputs)
        self.features = [] if not streams else self._own(streams, 0, sizes)
        count = max((len(stream) - 1 for stream in streams.values()), default=0)
        self.deepstack = [torch.cat(self._own(streams, 1 + i, sizes) or [torch.empty(0)]) for i in range(count)]

    def _own(self, every: dict[int, list[Tensor]], number: int, sizes: Sequence[int]) -> list[Tensor]:
        """Rows of each image of the row, out of those of all images."""
        streams = {}
        for token, rows in every.items():
            before = int((self.inputs["input_ids"][: self.row] == token).sum())
            mine = int((self.ids == token).sum())
            streams[token] = list(rows[number][before : before + mine])
        flat = [streams[int(token)].pop(0) for token in self.ids if int(token) in streams]
        assert not any(streams.values())
        return list(torch.stack(flat).split(list(sizes))) if flat else []

    def places(self) -> Tensor:
        """Positions of the dense prompt, the axes that feed the rotary embedding."""
        if "qwen" in self.family:
            return qwen_places(self.family, self.ids, self.grids())
        return torch.arange(len(self.ids))

    def grids(self) -> dict[int, list[list[int]]]:
        """Of each kind of placeholder the sizes of this row's images in tokens: time, rows, columns."""
        found = {}
        for key, token in (("image_grid_thw", "image_token_id"), ("video_grid_thw", "video_token_id")):
            grids = [[t, h // 2, w // 2] for t, h, w in self.inputs.get(key, torch.empty(0, 3)).tolist()]
            number = int(getattr(self.model.config, token))
            before = int((self.inputs["input_ids"][: self.row] == number).sum())
            while before > 0:
                before -= int(torch.tensor(grids.pop(0)).prod())
            found[number] = grids
        return found

    def seen(self, seen: Tensor, columns: Sequence[int]) -> Tensor:
        """What each column sees, from what a causal mask lets it see."""
        places = torch.tensor(columns)
        if self.family == "paligemma":  # the prompt is a prefix
            prompt = places < len(self.ids)
            return seen | (prompt[:, None] & prompt)
        if self.family == "gemma3":  # images see themselves; they lie apart
            block = torch.full((len(columns),), -1)
            for number, image in enumerate(self.images()):
                block[torch.isin(places, image)] = number
            return seen | ((block[:, None] == block) & (block >= 0))
        return seen

    def images(self) -> list[Tensor]:
        """Columns of each image."""
        return list(torch.tensor(self.visual()).split([len(f) for f in self.features])) if self.features else []

    def layer(self, number: int, x: Tensor, places: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Output of a decoder layer, and its attention (heads, n, n)."""
        layer, caught = self.text.layers[number], []
        handle = layer.self_attn.register_forward_hook(lambda module, args, output: caught.append(output[1][0]))
        out = layer(
            x[None],
            attention_mask=additive(seen, x.dtype),
            position_embeddings=self.text.rotary_emb(x[None], places.unsqueeze(-2)),
            position_ids=None,
            past_key_values=None,
        )
        handle.remove()
        x = (out[0] if isinstance(out, tuple) else out)[0]
        return x, caught[0]

    def behind_layer(self, number: int, x: Tensor, columns: Sequence[int]) -> Tensor:
        """What a layer's output becomes before the next one."""
        if self.family != "qwen3_vl" or number >= len(self.deepstack):
            return x
        added = dict(zip(self.visual(), self.deepstack[number], strict=True))
        return torch.stack([row + added[c] if c in added else row for row, c in zip(x, columns, strict=True)])

    def two_masks(self, embeds: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        """Logits of a language model some of whose layers see a window."""
        at = torch.arange(len(seen))
        near = at[:, None] - at < self.text.config.sliding_window
        masks = {"full_attention": seen, "sliding_attention": seen & near}
        out = self.text(
            inputs_embeds=embeds[None],
            attention_mask={name: additive(mask, embeds.dtype) for name, mask in masks.items()},
            position_ids=places[None],
            use_cache=False,
        )
        logits: Tensor = self.model.lm_head(out.last_hidden_state[0, -1])
        return logits

    def visual(self) -> list[int]:
        """Columns of the placeholders."""
        return [column for column, token in enumerate(self.ids.tolist()) if token in self.placeholders]

    def forward(self) -> Forward:
        """The language model, layer by layer."""

        def run(embeds: Tensor, seen: Tensor, places: Tensor, columns: Sequence[int]) -> Tensor:
            if self.family == "gemma3":
                return self.two_masks(embeds, self.seen(seen, columns), places)
            x = embeds
            for number in range(len(self.text.layers)):
                x, _ = self.layer(number, x, places, self.seen(seen, columns))
                x = self.behind_layer(number, x, columns)
            logits: Tensor = self.model.lm_head(self.text.norm(x[-1]))
            return logits

        return run


def qwen_places(family: str, ids: Tensor, grids: dict[int, list[list[int]]]) -> Tensor:
    """Time, row and column of every column, counted token by token."""
    places: list[list[int]] = []
    column, following = 0, 0
    left = {token: [list(grid) for grid in found] for token, found in grids.items()}
    while column < len(ids):
        token = int(ids[column])
        if token not in left:
            places.append([following] * 3)
            following, column = following + 1, column + 1
            continue
        t, h, w = left[token][0]
        frames = 1 if family == "qwen3_vl" else t  # there each frame stands alone
        step = 4 if family == "qwen2_5_vl" and t > 1 else 1  # positions per second of video, a frame taking one second
        places += [
            [following + step * f, following + r, following + c]
            for f in range(frames)
            for r in range(h)
            for c in range(w)
        ]
        following, column = following + max(h, w), column + frames * h * w
        left[token][0][0] -= frames
        if left[token][0][0] == 0:
            left[token].pop(0)
    return torch.tensor(places).T


def all_features(family: str, inputs: dict[str, Tensor]) -> dict[int, list[Tensor]]:
    """For each kind of placeholder the features of the whole batch, flat, then what each decoder layer adds."""
    model = tiny(family)[0]
    streams = {}
    for key, method, token in (
        ("pixel_values", "get_image_features", "image_token_id"),
        ("pixel_values_videos", "get_video_features", "video_token_id"),
    ):
        if key not in inputs:
            continue
        names = {
            "pixel_values": ("image_sizes", "batch_num_images", "image_grid_thw"),
            "pixel_values_videos": ("video_grid_thw",),
        }[key]
        options = {name: inputs[name] for name in names if name in inputs}
        with torch.no_grad():
            found = getattr(model.model, method)(inputs[key], **options, return_dict=True)
        pooled = found.pooler_output
        if family == "llava_onevision" and token == "video_token_id" and pooled.shape[1] % 4 == 0:
            newline = model.model.image_newline.detach().expand(len(pooled), 1, -1)
            pooled = torch.cat([pooled, newline], dim=1)  # early releases add it later
        every = [pooled, *(getattr(found, "deepstack_features", None) or ())]
        streams[int(getattr(model.config, token))] = [
            part.flatten(0, -2) if isinstance(part, Tensor) else torch.cat([image.flatten(0, -2) for image in part])
            for part in every
        ]
    return streams


def check_family(
    family: str,
    attention: str,
    inputs: dict[str, Tensor],
    strategy: PruningStrategy,
    positions: Positions,
    **settings: Any,
) -> Record:
    """Greedy generate and a forward under pruning equal the reference: logits of every step, tokens."""
    model, _ = tiny(family, attention)
    with prune(model, strategy, positions=positions) as record:
        output = _generate(model, inputs, **settings)
        forward = model(**inputs).logits.detach()
    logits, length = torch.stack(output.logits, dim=1), inputs["input_ids"].shape[1]
    images, again = record.calls[0].images, record.calls[1].images
    for a, b in zip(images, again, strict=True):
        assert torch.equal(a.indices, b.indices)
    for row in range(len(inputs["input_ids"])):
        mine = [image for image in images if image.prompt == row]
        dense = Dense(family, inputs, row, [image.tokens_in for image in mine])
        expected = reference_logits(
            dense.model,
            dense.ids,
            dense.features,
            [image.indices for image in mine],
            positions=positions,
            steps=STEPS,
            places=dense.places(),
            placeholders=dense.placeholders,
            forward=dense.forward(),
        )
        worst = (logits[row] - expected.logits).abs().max()
        assert worst <= 1e-5, f"row {row}: off by {worst}"
        assert torch.equal(output.sequences[row, length:], expected.tokens)
        # A forward counts padding into positions; rotary embeddings see differences only.
        if positions == "compact" or not (~dense.real).any():
            assert (forward[row, -1] - expected.logits[0]).abs().max() <= 2e-5
    return record


def check_inside(
    family: str,
    attention: str,
    inputs: dict[str, Tensor],
    strategy: PruningStrategy,
    stages: Sequence[Stage],
    positions: Positions | None,
    *,
    before: PruningStrategy | None = None,
    policy: Positions = "original",
    **settings: Any,
) -> Record:
    """The same with stages inside the decoder: also kept indices and tokens that enter each layer."""
    model, _ = tiny(family, attention)
    first: list[Tensor] | None = None
    if before is not None:
        with prune(model, before, positions=policy) as alone:
            model(**inputs)
        first = [image.indices for image in alone.images]
    with prune(model, strategy, positions=positions) as record:
        output = _generate(model, inputs, **settings)
    logits = torch.stack(output.logits, dim=1)
    adapter = adapter_for(model)
    keys = adapter.encode(inputs, {IMAGE_KEY}).keys or ()
    for row in range(len(inputs["input_ids"])):
        mine = [i for i, image in enumerate(record.images) if image.prompt == row]
        images = [record.images[i] for i in mine]
        dense = Dense(family, inputs, row, [image.tokens_in for image in images])
        entering = [torch.arange(len(f)) for f in dense.features] if first is None else [first[i] for i in mine]
        expected, kept, lengths = _staged(dense, entering, [keys[i] for i in mine], stages, policy)
        worst = (logits[row] - expected).abs().max()
        assert worst <= 1e-5, f"row {row}: off by {worst}"
        assert [image.indices.tolist() for image in images] == [rows.tolist() for rows in kept]
        text = len(dense.ids) - sum(map(len, dense.features))
        counted = [sum(counts) + text for counts in zip(*(image.layer_tokens for image in images), strict=True)]
        assert counted == (lengths if images else [])
    return record


def _generate(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )


@torch.no_grad()
def _staged(
    dense: Dense, entering: Sequence[Tensor], keys: list[int], stages: Sequence[Stage], policy: Positions
) -> tuple[Tensor, list[Tensor], list[int]]:
    """Logits of every step, kept indices and columns entering each layer, with every step computed from nothing."""
    visual = [i for i, token in enumerate(dense.ids.tolist()) if token in dense.placeholders]
    whole = list(torch.tensor(visual).split([len(f) for f in dense.features])) if visual else []
    gone = {int(c) for f, stay in zip(whole, entering, strict=True) for c in f[~torch.isin(torch.arange(len(f)), stay)]}
    columns = [c for c in range(len(dense.ids)) if c not in gone]
    table, flat = dense.model.get_input_embeddings(), torch.cat(dense.features) if visual else torch.empty(0)
    embeds = [flat[visual.index(c)] if c in visual else table(dense.ids[c]) for c in columns]
    original, prompt = dense.places(), len(columns)
    images = [image.tolist() for image in whole]

    def placed(kept: Sequence[Tensor], policy: Positions) -> tuple[Tensor, Tensor]:
        """Positions of all columns and of the first generated token."""
        if policy == "original":
            return original, original[..., -1] + 1
        return closed_places(original, images, [rows.tolist() for rows in kept])

    def following(first: Tensor, count: int) -> Tensor:
        return first[..., None] + torch.arange(count)

    logits: list[Tensor] = []
    for step in range(STEPS):
        x, at = torch.stack(embeds), torch.tensor(columns)
        places, first = placed(entering, policy)
        here = torch.cat([places[..., columns[:prompt]], following(first, step)], dim=-1)
        kept, lengths, attention = [rows.clone() for rows in entering], [], torch.empty(0)
        for number in range(len(dense.text.layers)):
            for stage in (s for s in stages if s.layer == number):
                n = int((at < len(dense.ids)).sum())
                slots = [torch.searchsorted(at, image[rows]) for image, rows in zip(whole, kept, strict=True)]
                view = View(number, attention[:, :n, :n], attention, x[:n], lambda: x, x[:n], slots, kept, keys)  # noqa: B023
                stay = torch.ones(len(x), dtype=torch.bool)
                for i, rows in enumerate(stage.rule(view)):
                    stay[slots[i]] = False
                    stay[slots[i][rows]] = True
                    kept[i] = kept[i][rows]
                x, here, at = x[stay], here[..., stay], at[stay]
                if stage.policy == "compact":
                    places, first = placed(kept, "compact")
                    left = at[at < len(dense.ids)]
                    here = torch.cat([places[..., left], following(first, step)], dim=-1)
            lengths.append(len(x) - step)
            seen = torch.ones(len(x), len(x), dtype=torch.bool).tril()
            x, attention = dense.layer(number, x, here, dense.seen(seen, at.tolist()))
            x = dense.behind_layer(number, x, at.tolist())
        if step == 0:
            result = kept, lengths
        logits.append(dense.model.lm_head(dense.text.norm(x[-1])))
        embeds.append(table(logits[-1].argmax()))
        columns.append(len(dense.ids) + step)
    assert len(columns) == prompt + STEPS
    return torch.stack(logits), *result
