"""PaliGemma and Gemma3: language models in which some columns see what follows them."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenprune.core.signals import GRID, Signal
from tokenprune.models.families.tiles import Arrangement, Kind, TiledAdapter


class PaliGemmaAdapter(TiledAdapter):
    """Adapter for PaliGemma: one tile per image; the prompt is a prefix whose columns all see each other.

    Positions count from 1 in the language model; `generate` adds that 1, a plain forward expects it.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"paligemma"})
    modality_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    length_keys: ClassVar[tuple[str, ...]] = ("token_type_ids",)
    first_position: ClassVar[int] = 1
    images_apart: ClassVar[bool] = True
    reasons: ClassVar[Mapping[str, str]] = {
        "cls_attention": "its SigLIP tower has no CLS token",
        "video": "the family takes images only",
        "kept cache": "every token of its prompt sees every other, those of an earlier turn the later too",
    }

    known: ClassVar[frozenset[Signal]] = TiledAdapter.known | {GRID}

    def tower_layer(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """The last layer; there is no CLS token to drop."""
        return -1, 0

    def arrangement(self, kind: Kind, inputs: Mapping[str, Any], passes: int, places: int) -> Arrangement:
        """See `TiledAdapter.arrangement`."""
        side = int(places**0.5)
        return Arrangement(
            pieces=(1,) * passes,
            numbers=(None,) * passes,
            place=list,
            grids=((side, side),) * passes,
            tile_grids=(None,) * passes,
        )

    def mask_options(self, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prefix, in which columns see each other, is one block."""
        types = extras.get("token_type_ids")
        return {} if types is None else {"block_sequence_ids": torch.where(types == 0, 0, -1)}

    def shadows(self) -> dict[str, Callable[..., Any]]:
        """`prepare_inputs_for_generation` that says that it takes embeddings; the model's own takes them unsaid."""
        plain = self.model.prepare_inputs_for_generation

        # `generate` reads this signature: embeddings by name, and whatever else under the name `kwargs`.
        def prepare_inputs_for_generation(input_ids: Tensor, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # noqa: ANN401
            return plain(input_ids, inputs_embeds=inputs_embeds, **kwargs)

        return {"prepare_inputs_for_generation": prepare_inputs_for_generation}


class Gemma3Adapter(PaliGemmaAdapter):
    """Adapter for Gemma3: columns of an image see each other, and most layers see a window of the last columns only.

    The window counts what is there, so behind a pruned image it reaches further back. Crops that the processor adds are
    images of their own.
    """

    model_types: ClassVar[frozenset[str]] = frozenset({"gemma3"})
    sites: ClassVar[frozenset[str]] = frozenset({"projector"})
    first_position: ClassVar[int] = 0
    reasons: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in PaliGemmaAdapter.reasons.items() if name != "kept cache"},
        "new images on a kept cache": "not every release makes the masks of image tokens anew in a later turn",
        "decoder": "its layers have masks and caches of two kinds",
        "tower": "its projector averages squares of patches, so the tower must keep all of them",
    }

    @property
    def projector(self) -> nn.Module:
        """The norm that gets the averaged patches."""
        norm: nn.Module = self.base.multi_modal_projector.mm_soft_emb_norm
        return norm

    def group(self, values: Float[Tensor, "t p e"]) -> Float[Tensor, "t n e"]:
        """See `TiledAdapter.group`."""
        side = int(values.shape[1] ** 0.5)
        pooled: Tensor = self.base.multi_modal_projector.avg_pool(values.transpose(1, 2).unflatten(2, (side, side)))
        return pooled.flatten(2).transpose(1, 2)
