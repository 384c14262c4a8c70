"""A language model written out layer by layer, for comparison with pruning inside the decoder: no cache, no padding.

Nothing of it comes from the package or from transformers except the weights: attention, rotary embedding, masks and
positions are made here, and every step runs the whole sequence again.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.models.oracle import ByContent, features_of
from tokenprune import Choice, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.core import places
from tokenprune.core.places import Positions
from tokenprune.core.signals import Signal, signal_named
from tokenprune.models import Record
from tokenprune.models.reading.vision import image_keys


class View(NamedTuple):
    """What a rule may look at, of the prompt's columns that are left before layer `layer`."""

    layer: int
    attention: Tensor  # (heads, columns, columns), of the layer before; of a stage within a layer: of this one
    keys: Tensor  # (key heads, columns, width), of the layer before
    hidden: Tensor  # (columns, width)
    next_attention: Callable[[], Tensor]  # (heads, columns), last row of this layer
    normed: Tensor  # (columns, width), `hidden` behind the final norm
    images: list[Tensor]  # columns of each image's tokens
    original: list[Tensor]  # their original indices
    keys_of_images: list[int]
    text: Sequence[Tensor] = ()  # for each image: columns of the text behind it
    text_embeds: Sequence[Tensor] = ()  # what entered layer 0 there
    entered: Sequence[Tensor] = ()  # what entered layer 0 of each image


class Answer(NamedTuple):
    """What a rule says of one image: tokens that stay, as places among those left, and new ones behind them."""

    kept: Tensor
    made: Tensor | None = None


Rule = Callable[[View], "Sequence[Tensor | Answer]"]
"""From a view to what happens to each image: a tensor is short for an answer without new tokens."""


class Stage(NamedTuple):
    """A rule, where it acts and what it does to positions."""

    layer: int
    policy: Positions
    rule: Rule
    within: bool = False  # acts in `layer` between attention and feed-forward instead of before it


class Expected(NamedTuple):
    """One row: logits of every step, greedy tokens, original indices kept per image, columns entering each layer.

    Tokens that were made count on from 1000 in `kept`.
    """

    logits: Tensor
    tokens: Tensor
    kept: list[Tensor]
    lengths: list[int]


@method("in_decoder", register=False)
class InDecoder(ByContent):
    """Keeps 3 to 11 random tokens inside the decoder, how many and which depending on the image alone."""

    layer: int = 2

    @property
    def place(self) -> places.InDecoder:
        return places.InDecoder(self.layer, "compact")


@method("attended", register=False)
class Attended(InDecoder):
    """As many of the most attended tokens."""

    needs: tuple[Signal, ...] = (
        signal_named("key"),
        signal_named("decoder_attention"),
    )

    def choose(self, tokens: Tokens) -> Choice:
        assert tokens.decoder_attention is not None
        order = tokens.decoder_attention.mean(0).argsort(descending=True, stable=True)
        return Choice(order[: self.count(tokens)].sort().values)


def by_content(strategy: InDecoder) -> Rule:
    return lambda view: [
        strategy.select(Tokens(torch.zeros(len(image), 1), key=key)).indices
        for image, key in zip(view.images, view.keys_of_images, strict=True)
    ]


def most_attended(count: Callable[[int, int], int], *, following: bool = False) -> Rule:
    """The rule of FastV, or with `following` that of PyramidDrop; `count` maps (image key, tokens left) to a number."""

    def rule(view: View) -> list[Tensor]:
        row = view.next_attention() if following else view.attention[:, -1]
        kept = []
        for image, key in zip(view.images, view.keys_of_images, strict=True):
            scores = row[:, image].mean(0).tolist()
            ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
            kept.append(torch.tensor(sorted(ranked[: min(count(key, len(scores)), len(scores))])))
        return kept

    return rule


class Decoder:
    """The hand-made language model of a tiny LLaVA."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text = model.model.language_model
        config = self.text.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = config.hidden_size // self.heads
        self.frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, self.width, 2) / self.width)

    def norm(self, x: Tensor, module: Any) -> Tensor:
        scaled: Tensor = module.weight * x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
        return scaled

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None].float() * self.frequencies
        a, b = x[..., : self.width // 2], x[..., self.width // 2 :]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    def queries_keys(self, x: Tensor, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        block = self.text.layers[layer]
        x = self.norm(x, block.input_layernorm)
        q = block.self_attn.q_proj(x).view(-1, self.heads, self.width).transpose(0, 1)
        k = block.self_attn.k_proj(x).view(-1, self.groups, self.width).transpose(0, 1)
        return self.rotate(q, positions), self.rotate(k, positions)

    def attention(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.repeat_interleave(self.heads // self.groups, 0).transpose(1, 2) / self.width**0.5
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        weights: Tensor = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        return weights

    def attend(self, x: Tensor, layer: int, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of a layer: residual stream, attention (heads, n, n) and keys (groups, n, width)."""
        block = self.text.layers[layer]
        q, k = self.queries_keys(x, layer, positions)
        v = block.self_attn.v_proj(self.norm(x, block.input_layernorm)).view(-1, self.groups, self.width)
        weights = self.attention(q, k)
        mixed = weights @ v.transpose(0, 1).repeat_interleave(self.heads // self.groups, 0)
        return x + block.self_attn.o_proj(mixed.transpose(0, 1).flatten(1)), weights, k

    def feed_forward(self, x: Tensor, layer: int) -> Tensor:
        """The second half."""
        mlp = self.text.layers[layer].mlp
        y = self.norm(x, self.text.layers[layer].post_attention_layernorm)
        out: Tensor = x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
        return out


class Row:
    """One step's sequence: prompt columns that are left, made ones among them, and what has been generated."""

    def __init__(self, decoder: Decoder, x: Tensor, positions: Tensor, prompt: int, images: list[list[int]]) -> None:
        self.decoder, self.x, self.positions, self.prompt = decoder, x, positions, prompt
        self.alive = list(range(prompt))  # name of each column of the prompt that is left; made ones have names >= 1000
        self.images, self.entered = [list(image) for image in images], images
        self.embeds = x[:prompt]
        taken = {column for image in images for column in image}
        self.text = [[c for c in range(image[-1], prompt) if c not in taken] if image else [] for image in images]

    def view(self, layer: int, attention: Tensor, keys: Tensor, original: list[Tensor], image_keys: list[int]) -> View:
        n = len(self.alive)
        x, positions, decoder = self.x, self.positions, self.decoder
        place = {c: i for i, c in enumerate(self.alive)}

        def following() -> Tensor:
            q, k = decoder.queries_keys(x[:n], layer, positions[:n])
            return decoder.attention(q, k)[:, -1]

        return View(
            layer,
            attention[:, :n, :n],
            keys[:, :n],
            x[:n],
            following,
            decoder.norm(x[:n], decoder.text.norm),
            [torch.tensor([place[c] for c in image]) for image in self.images],
            original,
            image_keys,
            [torch.tensor([place[c] for c in text]) for text in self.text],
            [self.embeds[text] for text in self.text],
            [self.embeds[image] for image in self.entered],
        )

    def apply(self, answers: Sequence[Tensor | Answer], policy: Positions) -> Tensor:
        """Rebuild the prompt part column by column; where each column stood, made ones behind all others."""
        place = {c: i for i, c in enumerate(self.alive)}
        gone: set[int] = set()
        behind: dict[int, list[int]] = {}
        vectors, positions = self.x, self.positions
        made = 1000 + sum(c >= 1000 for c in self.alive) + 100 * len(self.alive)
        for number, answer in enumerate(answers):
            kept, new = answer if isinstance(answer, Answer) else (answer, None)
            stay = [self.images[number][i] for i in kept.tolist()]
            gone |= set(self.images[number]) - set(stay)
            for vector in [] if new is None else new:
                place[made] = len(vectors)
                vectors = torch.cat([vectors, vector[None]])
                positions = torch.cat([positions, positions[place[stay[-1]]][None]])
                behind.setdefault(stay[-1], []).append(made)
                made += 1
            self.images[number] = stay + (behind[stay[-1]] if stay and stay[-1] in behind else [])
        order = [c for old in self.alive if old not in gone for c in (old, *behind.get(old, []))]
        source = torch.tensor([*(place[c] for c in order), *range(len(self.alive), len(self.x))])
        self.x, self.positions, self.alive = vectors[source], positions[source], order
        if policy == "compact":
            self.positions = torch.arange(len(self.positions))
        return source


class Entering(NamedTuple):
    """What enters layer 0 of one prompt: embeddings, their columns of the prompt, and the place of each image's."""

    embeds: list[Tensor]
    columns: list[int]
    images: list[list[int]]


def enter(model: Any, ids: Tensor, features: Sequence[Tensor], before: Sequence[Tensor]) -> Entering:
    """Put together text and what is kept of each image, column by column."""
    table = model.get_input_embeddings()
    found = Entering([], [], [[] for _ in features])
    image = token = 0
    for column, value in enumerate(ids.tolist()):
        if value != model.config.image_token_id:
            found.embeds.append(table.weight[value])
            found.columns.append(column)
            continue
        if token in before[image].tolist():
            found.images[image].append(len(found.embeds))
            found.embeds.append(features[image][token])
            found.columns.append(column)
        token += 1
        if token == len(features[image]):
            image, token = image + 1, 0
    return found


def run_layers(
    row: Row, before: Sequence[Tensor], keys: list[int], stages: Sequence[Stage]
) -> tuple[list[Tensor], list[int]]:
    """All layers on one sequence, which is left in `row`: original indices per image, columns entering each layer."""
    decoder, original, lengths = row.decoder, list(before), []
    attention = keys_before = torch.empty(0)
    for layer in range(len(decoder.text.layers)):
        for within in (False, True):
            if within:
                lengths.append(len(row.alive))
                row.x, attention, keys_before = decoder.attend(row.x, layer, row.positions)
            for stage in (s for s in stages if s.layer == layer and s.within == within):
                answers = stage.rule(row.view(layer, attention, keys_before, original, keys))
                source = row.apply(answers, stage.policy)
                for number, answer in enumerate(answers):
                    kept_rows, new = answer if isinstance(answer, Answer) else (answer, None)
                    made = 0 if new is None else len(new)
                    original[number] = torch.cat([original[number][kept_rows], 1000 + torch.arange(made)])
                if len(attention) and int(source.max()) < attention.shape[1]:  # nothing made: for a next stage here
                    attention, keys_before = attention[:, source][:, :, source], keys_before[:, source]
        row.x = decoder.feed_forward(row.x, layer)
    return original, lengths


@torch.no_grad()
def expected_row(
    model: Any,
    ids: Tensor,
    features: Sequence[Tensor],
    before: Sequence[Tensor],
    keys: list[int],
    stages: Sequence[Stage],
    *,
    policy: Positions = "original",
    steps: int = 4,
) -> Expected:
    """Greedy decoding of one prompt without padding.

    `features` are each image's projected tokens, `before` what of them enters the language model, and `policy` how
    positions are made there.
    """
    decoder, table = Decoder(model), model.get_input_embeddings()
    columns, dense, images = enter(model, ids, features, before)
    places, following = (dense, len(ids)) if policy == "original" else (list(range(len(dense))), len(dense))
    prompt = len(columns)
    logits: list[Tensor] = []
    chosen: list[int] = []
    kept: list[Tensor] = []
    lengths: list[int] = []
    for step in range(steps):
        x = torch.stack([*columns, *(table.weight[token] for token in chosen)])
        positions = torch.tensor([*places, *(following + i for i in range(step))])
        row = Row(decoder, x, positions, prompt, images)
        original, lengths = run_layers(row, before, keys, stages)
        kept = original if step == 0 else kept
        logits.append(model.lm_head(decoder.norm(row.x[-1], decoder.text.norm)))
        chosen.append(int(logits[-1].argmax()))
    return Expected(torch.stack(logits), torch.tensor(chosen), kept, lengths)


def expected_rows(
    model: Any,
    inputs: dict[str, Tensor],
    stages: Sequence[Stage],
    *,
    before: PruningStrategy | None = None,
    policy: Positions = "original",
    steps: int = 4,
) -> list[Expected]:
    """`expected_row` for every row of a batch."""
    features = features_of(model, inputs)
    keys = list(image_keys(inputs["pixel_values"]))
    rows, start = [], 0
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        count = int((ids == model.config.image_token_id).sum()) // 16
        mine = slice(start, start + count)
        start += count
        first, rich = [], []
        for f, key in zip(features[mine], keys[mine], strict=True):
            chosen = None if before is None else before.select(Tokens(f, key=key, grid=(4, 4)))
            first.append(torch.arange(len(f)) if chosen is None else chosen.indices)
            merged = None if chosen is None else chosen.features
            rich.append(f if merged is None or chosen is None else f.index_copy(0, chosen.indices, merged))
        rows.append(expected_row(model, ids, rich, first, keys[mine], stages, policy=policy, steps=steps))
    return rows


def check_decoder(
    model: Any,
    inputs: dict[str, Tensor],
    strategy: PruningStrategy,
    stages: Sequence[Stage],
    *,
    positions: Positions | None,
    before: PruningStrategy | None = None,
    policy: Positions = "original",
    steps: int = 4,
    tolerance: float = 1e-5,
    **settings: Any,
) -> Record:
    """Greedy generate and a plain forward equal the reference: logits of every step, tokens, kept indices, caches."""
    with prune(model, strategy, positions=positions) as record:
        output = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
        generated = list(record.images)
        forward = model(**inputs).logits.detach()
        plain = list(record.calls[-1].images)
    logits = torch.stack(output.logits, dim=1)
    length = inputs["input_ids"].shape[1]
    rows = expected_rows(model, inputs, stages, before=before, policy=policy, steps=steps)
    for row, expected in enumerate(rows):
        worst = (logits[row] - expected.logits).abs().max()
        assert worst <= tolerance, f"row {row}: off by {worst}"
        assert (forward[row, -1] - expected.logits[0]).abs().max() <= tolerance
        assert torch.equal(output.sequences[row, length:], expected.tokens)
        mine = [image for image in generated if image.prompt == row]
        for image, left in zip(mine, expected.kept, strict=True):
            assert image.indices.tolist() == left[left < 1000].tolist()
            assert plain[generated.index(image)].indices.tolist() == image.indices.tolist()
            assert image.extra_tokens == int((left >= 1000).sum())
        text = int(inputs["attention_mask"][row].sum()) - 16 * len(mine)
        entering = [sum(counts) + text for counts in zip(*(image.layer_tokens for image in mine), strict=True)]
        assert entering == (expected.lengths if mine else [])
    for layer in range(len(model.model.language_model.layers)):
        longest = max(expected.lengths[layer] for expected in rows)
        assert int(output.past_key_values.get_seq_length(layer)) == longest + steps - 1, f"cache of layer {layer}"
    return record
