"""What the tests of models share: test strategies, cached tiny models, and the comparison with the reference."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenprune import PLAIN, Choice, PruningStrategy, Tokens, prune
from tokenprune import strategy as method
from tokenprune.baselines import GridPool
from tokenprune.core import strategy as core
from tokenprune.core.places import Positions
from tokenprune.core.signals import Signal, signal_named
from tokenprune.models import Record
from tokenprune.testing.reference import Reference, reference_logits
from tokenprune.testing.tiny.models import MakeInputs, tiny_llava

TOWER = (
    "cls_attention",
    "cls_attention_first",
    "cls_attention_last",
    "vision_states",
    "vision_cls",
    "vision_keys",
    "vision_last_keys",
    "vision_last_cls",
)
EVERYTHING = frozenset(signal_named(name) for name in (*TOWER, "key", "project"))


def named(*names: str) -> frozenset[Signal]:
    """Signals by their names."""
    return frozenset(map(signal_named, names))


def of(vision: Any, name: str) -> Any:
    """The values of a signal for all images, None where it was not read."""
    return vision.signals.get(signal_named(name))


BATCHES = {
    "padded": ["look at <0> now", "<1> what is it", "tell me more about the things in <2> please"],
    "equal length": ["look at <0> now", "what of <1> here", "and in <2> then"],
    "one row": ["what is in <3> then"],
    "two images": ["compare <0> with <4> please", "here is <1>", "no image at all"],
    "side by side": ["both <0> <1> are here", "<5> <6> <7> end"],
}


@method("by_content", register=False)
class ByContent(core.Stage):
    """Keeps 3 to 11 random tokens, how many and which depending on the image alone."""

    needs: tuple[Signal, ...] = (signal_named("key"),)

    seed: int = 0

    def requested(self, tokens: Tokens) -> int | None:
        assert tokens.key is not None
        return 3 + (tokens.key + self.seed) % 9

    def choose(self, tokens: Tokens) -> Choice:
        assert tokens.key is not None
        generator = torch.Generator().manual_seed((tokens.key + self.seed) % 2**40)
        picked = torch.randperm(tokens.n, generator=generator)[: self.count(tokens)]
        indices = (picked.sort().values if "ascending" in self.promises else picked).to(tokens.visual.device)
        return Choice(indices)


@method("in_pick_order", register=False)
class InPickOrder(ByContent):
    """The same tokens, fed in the order in which they were drawn."""

    promises = PLAIN - {"ascending"}


@method("keep_all", register=False)
class KeepAll(core.Stage):
    """Keeps everything."""

    def requested(self, tokens: Tokens) -> int | None:
        return tokens.n

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(tokens.n, device=tokens.visual.device))


@lru_cache
def tiny(attention: str = "sdpa", seed: int = 0) -> tuple[Any, MakeInputs]:
    """One model for all tests: a leak from one to another is a failure, too."""
    return tiny_llava(seed, attn_implementation=attention)


def features_of(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Projected tokens of every image, from the model's own method."""
    if "pixel_values" not in inputs:
        return []
    with torch.no_grad():
        return list(model.get_image_features(inputs["pixel_values"]).pooler_output)


def reference_rows(
    model: Any, inputs: dict[str, Tensor], record: Record, positions: str, *, steps: int, tokens: Tensor | None = None
) -> list[Reference]:
    """The reference for every row of the last recorded call."""
    features = features_of(model, inputs)
    images = list(record.calls[-1].images)
    if isinstance(record.strategy, GridPool):
        features = [
            f.index_copy(0, i.indices, record.strategy.select(Tokens(f, grid=(4, 4))).features)  # type: ignore[arg-type]
            for f, i in zip(features, images, strict=True)
        ]
    rows = []
    for row, ids in enumerate(inputs["input_ids"]):
        mine = [j for j, image in enumerate(images) if image.prompt == row]
        rows.append(
            reference_logits(
                model,
                ids[inputs["attention_mask"][row].bool()],
                [features[j] for j in mine],
                [images[j].indices for j in mine],
                positions=positions,
                steps=steps,
                tokens=None if tokens is None else tokens[row],
            )
        )
    return rows


def check_generate(
    model: Any, inputs: dict[str, Tensor], strategy: PruningStrategy, positions: Positions, **settings: Any
) -> Record:
    """Greedy generate under pruning equals the reference in every step's logits, in every row."""
    steps = 4
    with prune(model, strategy, positions=positions) as record:
        output = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    logits = torch.stack(output.logits, dim=1).float().cpu()
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
    for row, reference in enumerate(reference_rows(model, inputs, record, positions, steps=steps)):
        worst = (logits[row] - reference.logits).abs().max()
        assert worst <= 1e-5, f"row {row}: off by {worst}"
        assert torch.equal(output.sequences[row, length:].cpu(), reference.tokens)
    return record


def traces(model: Any) -> dict[str, Any]:
    """Everything that pruning could leave on a model: hooks, instance attributes, configs, by identity."""
    own = {"_previous_max_cache_length", "rope_deltas"}  # transformers notes them in every call
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} attributes"] = {k: id(v) for k, v in vars(module).items() if k not in own}
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs"):
            found[f"{name} {kind}"] = list(getattr(module, kind))
        found[f"{name} config"] = (id(getattr(module, "config", None)), str(getattr(module, "config", None)))
    return found
