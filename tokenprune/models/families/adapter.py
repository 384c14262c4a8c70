"""`Adapter`: what the generic code must know about a family of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenprune.core.signals import (
    GRID,
    IMAGE_KEY,
    PROMPT_NUMBER,
    QUESTION,
    TEXT,
    WHOLE_IMAGE,
    FromDecoder,
    FromInputs,
    FromStates,
    Signal,
    declared,
)
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.reading.vision import Grid, Vision

if TYPE_CHECKING:
    from tokenprune.models.encode.clip import Clip

NO_SIGNALS: frozenset[Signal] = frozenset()


class TowerUse(NamedTuple):
    """What a strategy inside the vision tower must know about a call.

    Attributes:
        layers: the tower's layers up to the one whose output the projector gets.
        prefix: leading rows of the tower's sequence that are no patches (1 for a CLS token).
        crop: leading rows that the projector does not get.
        grid: (rows, columns) of the patches, where what the projector gets is a raster.
    """

    layers: tuple[nn.Module, ...]
    prefix: int
    crop: int
    grid: Grid


class Adapter(ABC):
    """One family of vision-language models. Holds the model, changes nothing in it.

    A subclass states the class attributes and writes `encode`; the other methods have defaults that fit models in which
    every image becomes a number of placeholder tokens of the prompt.

    Attributes:
        model_types: values of `model.config.model_type` that it serves.
        modality_keys: arguments of `generate` and `forward` that are used up before the language model (pixels, sizes).
        visual_keys: those of them that carry images or videos.
        length_keys: further arguments with one entry per prompt column, to be cut like the prompt (token types).
        sites: where strategies can act: "projector"; "decoder" for language models whose layers take `attention_mask`
            and `position_embeddings` by name and whose masks are plain causal ones, with `rotary_emb` and `norm` beside
            `layers`; "tower" for towers of CLIP's or SigLIP's layers behind which every token goes its own way: a
            projector that works on the raster of patches cannot take merged ones.
        reasons: for sites, names of signals, "video", "kept cache" and "new images on a kept cache" that the family
            does not support, why.
        first_position: position of the first column in a plain forward; in `generate` it is 0.
        images_apart: whether each argument in `modality_keys` that is a tensor has one entry per image, so that some of
            a batch's images can be encoded without the others and without their prompts.
        counting_axes: for positions with several axes, how many of them in front only count columns and do not feed the
            rotary embedding.
        known: signals without a source that it supplies.
        model: the whole model, with `generate`.
        clip: a CLIP model beside it, when the caller gave one.
    """

    model_types: ClassVar[frozenset[str]]
    modality_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    visual_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    length_keys: ClassVar[tuple[str, ...]] = ()
    reasons: ClassVar[Mapping[str, str]] = {}
    sites: ClassVar[frozenset[str]] = frozenset({"projector"})
    first_position: ClassVar[int] = 0
    images_apart: ClassVar[bool] = False
    counting_axes: ClassVar[int] = 0
    known: ClassVar[frozenset[Signal]] = frozenset({TEXT, QUESTION, GRID, WHOLE_IMAGE, IMAGE_KEY, PROMPT_NUMBER})

    clip: "Clip | None" = None

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.model = model

    @property
    def base(self) -> Any:  # noqa: ANN401
        """The model without its output head."""
        module: nn.Module = self.model.model
        return module

    @property
    def decoder(self) -> Any:  # noqa: ANN401
        """The language model."""
        return self.base.language_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers, in order."""
        layers: nn.ModuleList = self.decoder.layers
        return layers

    @property
    def decoder_attention(self) -> list[nn.Module]:
        """The attention module of each decoder layer."""
        modules: list[Any] = list(self.decoder_layers)
        return [module.self_attn for module in modules]

    @property
    def vision_tower(self) -> nn.Module:
        """The module that sees the pixels. It must run once for every batch of images and for nothing else."""
        tower: nn.Module = self.base.vision_tower
        return tower

    @property
    def vision_attention(self) -> list[nn.Module]:
        """The vision tower's attention modules, in order."""
        return [
            m for m in self.vision_tower.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config")
        ]

    def tower_use(self, inputs: Mapping[str, Any]) -> "TowerUse":
        """Which of the tower's layers count, for the site "tower".

        Args:
            inputs: as for `encode`.

        Raises:
            UnsupportedError: when the model cannot be pruned there.
        """
        raise UnsupportedError(f"prune: the vision tower of {type(self.model).__name__} cannot be pruned")

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Ids of the placeholders that image tokens replace."""
        return frozenset({int(self.model.config.image_token_id)})

    def reads(self, signal: Signal) -> bool:
        """Tell whether `encode` can read a signal on the vision side."""
        return False

    def why_not(self, signal: Signal) -> str | None:
        """Say why the model cannot supply a signal, as the end of a sentence, which may be empty; None when it can."""
        if isinstance(signal.source, FromDecoder | FromStates | FromInputs):
            fits = "decoder" in self.sites
        else:
            fits = signal in self.known or self.reads(signal)
        plain = signal.name.partition(".at(")[0]  # at another layer for the same reason
        return None if fits else self.because(signal.name if signal.name in self.reasons else plain)

    @property
    def signals(self) -> frozenset[str]:
        """Names of declared signals that it supplies before its language model."""
        inside = FromDecoder | FromStates | FromInputs
        mine = (signal for signal in declared() if not isinstance(signal.source, inside) and signal is not WHOLE_IMAGE)
        return frozenset(signal.name for signal in mine if self.why_not(signal) is None)

    def has_visual(self, call: Mapping[str, Any]) -> bool:
        """Whether a call of the model brings images or videos.

        Raises:
            UnsupportedError: when it brings videos and the family takes none.
        """
        if call.get("pixel_values_videos") is not None and "pixel_values_videos" not in self.visual_keys:
            raise UnsupportedError(
                f"prune: {type(self.model).__name__} takes no videos{self.because('video')}; "
                "leave pixel_values_videos out"
            )
        return any(call.get(name) is not None for name in self.visual_keys)

    def because(self, name: str) -> str:
        """The reason why a site or field is not supported, as the end of a sentence; empty when none is given."""
        return f", because {self.reasons[name]}" if name in self.reasons else ""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], want: Collection[Signal] = NO_SIGNALS) -> Vision:
        """Run the vision tower and the projector once.

        Args:
            inputs: what the caller gave the model, including the modality arguments.
            want: signals to supply beside the features; those that do not come from the vision side are ignored.

        Returns:
            Projected tokens, flat in placeholder order, and the wanted signals.
        """

    def embed_text(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Input embeddings of the prompt. Placeholders outside the vocabulary get those of token 0."""
        embedding = self.model.get_input_embeddings()
        # A wrapper around the table, such as peft's, has no such attribute itself.
        rows = next(part.num_embeddings for part in embedding.modules() if hasattr(part, "num_embeddings"))
        beyond = [token for token in self.image_token_ids if token >= rows]
        if beyond:
            ids = ids.masked_fill(torch.isin(ids, torch.tensor(beyond, device=ids.device)), 0)
        embeds: Tensor = embedding(ids)
        return embeds

    def to_model(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The ids on the device of the input embeddings."""
        device = self.model.get_input_embeddings().weight.device
        return ids if device.type == "meta" else ids.to(device)

    @property
    def first_layer(self) -> int:
        """The first decoder layer at which stages can act."""
        return 1

    def mask_options(self, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arguments for transformers' `create_causal_mask` where columns see more than what stands before them.

        Args:
            extras: the arguments named by `length_keys`, for the columns that are there.
        """
        return {}

    def rotary(self, hidden: Float[Tensor, "b k d"], positions: Int[Tensor, "*axes b k"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the decoder's rotary embedding, for the axes of `positions` that do not only count."""
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        return cos, sin

    def shadows(self) -> dict[str, Callable[..., Any]]:
        """Methods that stand on the model's instance while it is pruned, in place of its own."""
        return {}

    def positions(
        self, inputs: Mapping[str, Any], default: Int[Tensor, "b l"], vision: Vision | None = None
    ) -> Int[Tensor, "*axes b l"]:
        """Positions of the dense prompt: the caller's, else `default`; models with mRoPE add axes in front.

        Args:
            inputs: what the caller gave the model, with `attention_mask` as it was understood.
            default: what models with one axis give the columns.
            vision: what `encode` returned, None without images.
        """
        given = inputs.get("position_ids")
        if given is None:
            return default
        if given.shape[-1] != default.shape[1] or given.ndim != 2 or given.shape[0] not in (1, default.shape[0]):
            raise ValueError(
                f"prune: position_ids are {tuple(given.shape)} but the prompts are {tuple(default.shape)}; "
                "give one position per prompt column or leave them out"
            )
        placed: Tensor = given.expand(default.shape).to(default.device)
        return placed
