"""CLIP beside the model: its text tower and its joint space, for methods that compare patches with the prompt."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenprune.core.fields import check_choice
from tokenprune.core.merging import Merging
from tokenprune.core.signals import CLIP_TEXT, CLIP_VISUAL, VISION_STATES, Signal
from tokenprune.models.encode.tower import encode_merged
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.families.adapter import Adapter
from tokenprune.models.reading.vision import Vision
from tokenprune.models.wrapped.offloaded import weights_at_hand

CLIP_SIGNALS = frozenset({CLIP_VISUAL, CLIP_TEXT})
"""Signals that need a CLIP model beside the one that is pruned."""

_PARTS = ("vision_model", "text_model", "visual_projection", "text_projection")
_SHAPE = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
_ANSWER = re.compile(r"(?:\bassistant\s*:?|\[/INST\]|<start_of_turn>\s*model)\s*$", re.IGNORECASE)
_INSTRUCTION = re.compile(r"\s*Answer the question using a single word or phrase\.?\s*$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model that tells how patches and prompt relate, for CDPruner and TRIM. The pruned model stays untouched.

    * `Tokens.clip_visual`: the states of the model's own vision tower that its projector gets, through CLIP's last
      layer norm and visual projection, in float32. The tower runs once, as always; CLIP's own vision layers never do.
    * `Tokens.clip_text`: CLIP's embedding of the question, one row per segment of as many tokens as CLIP can take (77).

    That only means something when the vision tower *is* this CLIP's, so towers of another kind or shape are refused,
    and so are other weights unless `same_weights=False` says that the tower was tuned on purpose.

    Text is cut as CDPruner's authors do: its tokens, begin and end token included, in pieces of 77, the last one filled
    up with zeros that are masked. A piece without an end token is read at its largest token id.

    Args:
        model: a `CLIPModel` of transformers, for LLaVA-1.5 that of openai/clip-vit-large-patch14-336.
        tokenizer: its tokenizer.
        question: from the token ids of one prompt, without padding, to the raw question; `question_reader` makes one.
        long: what happens to texts that CLIP cannot take whole: "segments", or "cut", the beginning alone (as TRIM's
            authors do).
        same_weights: refuse a vision tower whose weights are not those of `model`.

    Raises:
        TypeError: when `model` is no CLIP model.
        ValueError: when `long` is unknown.
    """

    model: Any
    tokenizer: Any
    question: Callable[[Int[Tensor, " l"]], str]
    long: Literal["segments", "cut"] = "segments"
    same_weights: bool = True

    def __post_init__(self) -> None:
        lacking = [part for part in _PARTS if not isinstance(getattr(self.model, part, None), nn.Module)]
        if lacking:
            raise TypeError(
                f"Clip: model must be a CLIPModel with text and vision side, got {type(self.model).__name__} without "
                f"{lacking[0]}; load it with transformers.CLIPModel.from_pretrained"
            )
        check_choice("Clip", "long", self.long, ("segments", "cut"))

    @classmethod
    def from_pretrained(cls, name: str | Path, processor: Any, **options: Any) -> "Clip":  # noqa: ANN401
        """Load model and tokenizer from a local folder or a hub id, in float32 on the CPU.

        Args:
            name: such as "openai/clip-vit-large-patch14-336".
            processor: the pruned model's processor, for reading the question.
            options: `long`, `same_weights`.
        """
        from transformers import AutoTokenizer, CLIPModel

        model = CLIPModel.from_pretrained(name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(name)
        return cls(model, tokenizer, question_reader(processor), **options)

    def check(self, adapter: Adapter) -> None:
        """Raise unless the vision tower of the model is this CLIP's.

        Raises:
            UnsupportedError: saying what differs.
        """
        family, tower, own = type(adapter.model).__name__, adapter.vision_tower, self.model.vision_model
        kind = getattr(getattr(tower, "config", None), "model_type", type(tower).__name__)
        if kind != own.config.model_type:
            raise UnsupportedError(
                f"Clip: the vision tower of {family} is a {kind}, whose states mean nothing in CLIP's joint space; "
                "choose a strategy that does without Tokens.clip_visual"
            )
        for name in _SHAPE:
            theirs, ours = getattr(tower.config, name), getattr(own.config, name)
            if theirs != ours:
                raise UnsupportedError(
                    f"Clip: the vision tower of {family} has {name}={theirs}, this CLIP has {ours}; pass the CLIP that "
                    "the tower was made from"
                )
        if self.same_weights and not _same_weights(tower, own):
            raise UnsupportedError(
                f"Clip: the weights of the vision tower of {family} are not those of this CLIP; pass the CLIP that the "
                "tower was made from, or Clip(..., same_weights=False) when the tower was tuned and you want its "
                "states projected all the same"
            )

    @torch.no_grad()
    def visual(self, states: Float[Tensor, "n c"]) -> Float[Tensor, "n p"]:
        """Tower states carried into CLIP's joint space, in float32, not normalised."""
        norm, projection = self.model.vision_model.post_layernorm, self.model.visual_projection.weight
        if states.shape[-1] != norm.weight.shape[0]:
            raise UnsupportedError(
                f"Clip: vision states have width {states.shape[-1]} but this CLIP has {norm.weight.shape[0]}; with "
                "several values in vision_feature_layer there is no single state per patch to project"
            )
        rows = states.detach().to(norm.weight.device).float()
        rows = functional.layer_norm(rows, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return functional.linear(rows, projection.float())

    @torch.no_grad()
    def text(self, question: str) -> Float[Tensor, "s p"]:
        """CLIP's embedding of a text, one row per segment, in float32, not normalised."""
        tower, projection = self.model.text_model, self.model.text_projection.weight
        limit, device = int(tower.config.max_position_embeddings), projection.device
        cut = {"truncation": True, "max_length": limit} if self.long == "cut" else {"verbose": False}
        tokens = torch.tensor(self.tokenizer(question, **cut)["input_ids"], device=device)
        real = torch.ones_like(tokens)
        ids, mask = (functional.pad(row, (0, -tokens.shape[0] % limit)).view(-1, limit) for row in (tokens, real))
        states = tower(input_ids=ids, attention_mask=mask).last_hidden_state
        # Old configurations name a wrong end token (2); there the end is the largest id.
        end = tower.config.eos_token_id
        ends = (ids == end) & mask.bool() if end != 2 else torch.zeros_like(mask, dtype=torch.bool)
        place = torch.where(ends.any(1), ends.int().argmax(1), ids.argmax(1))
        pooled = states[torch.arange(ids.shape[0], device=device), place]
        return functional.linear(pooled.float(), projection.float())


def question_reader(processor: Any) -> Callable[[Int[Tensor, " l"]], str]:  # noqa: ANN401
    """A function from a prompt's token ids to its raw question.

    The question is the text behind the last image, without the words that open the answer ("ASSISTANT:" and the like)
    and without "Answer the question using a single word or phrase.", which the authors of CDPruner drop, too.

    Args:
        processor: the pruned model's processor, with `tokenizer` and `image_token_id`.

    Raises:
        ValueError: by the function, when nothing is left: then pass a function of your own.
    """
    tokenizer, image = processor.tokenizer, int(processor.image_token_id)

    def question(ids: Int[Tensor, " l"]) -> str:
        places = (ids == image).nonzero()
        behind = ids[int(places[-1]) + 1 :] if places.numel() else ids
        text = str(tokenizer.decode(behind.tolist(), skip_special_tokens=True)).strip()
        text = _INSTRUCTION.sub("", _ANSWER.sub("", text).strip()).strip()
        if not text:
            raise ValueError(
                "question_reader: there is no text behind the image; pass Clip(..., question=...), a function from the "
                "prompt's token ids to the question"
            )
        return text

    return question


def see(adapter: Adapter, inputs: Mapping[str, Any], want: Collection[Signal], tower: Merging | None = None) -> Vision:
    """`adapter.encode`, with merging inside the tower, and with CLIP's joint space when that is wanted.

    Args:
        adapter: the model's adapter.
        inputs: as for `Adapter.encode`.
        want: signals; `CLIP_VISUAL` needs an adapter with a `clip`.
        tower: what merges inside the tower.
    """
    through_clip = adapter.clip is not None and bool(CLIP_SIGNALS & set(want))
    want = {*want, VISION_STATES} if through_clip else want
    with weights_at_hand(adapter.base):
        vision = adapter.encode(inputs, want=want) if tower is None else encode_merged(adapter, inputs, want, tower)
    if adapter.clip is None or not through_clip:
        return vision
    rows = tuple(adapter.clip.visual(states) for states in vision.signals.get(VISION_STATES, ()))
    return replace(vision, signals={**vision.signals, CLIP_VISUAL: rows})


def _same_weights(tower: nn.Module, own: nn.Module) -> bool:
    """Equal in the coarser of the two dtypes. The last norm, which models do not use, may differ."""
    theirs = dict(tower.named_parameters())
    for name, mine in own.named_parameters():
        if name.startswith("post_layernorm"):
            continue
        other = next((value for key, value in theirs.items() if key.endswith(name)), None)
        if other is None or other.shape != mine.shape:
            return False
        coarse = min(other.dtype, mine.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        if not torch.equal(other.detach().cpu().to(coarse), mine.detach().cpu().to(coarse)):
            return False
    return True
