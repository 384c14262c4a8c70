"""The sizes of a model that its costs depend on, read from a transformers configuration."""

from dataclasses import dataclass
from typing import Any

GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})
"""Language models whose MLP has three matrices (gate, up, down) and whose attention is the usual four."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """A decoder with a gated MLP.

    Attributes:
        layers: decoder layers.
        width: of a token.
        inner: width inside the MLP.
        heads: query heads.
        kv_heads: heads of keys and values; fewer than `heads` with grouped queries.
        head: width of a head.
        vocabulary: rows of the output head.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "DecoderShape":  # noqa: ANN401
        """From the configuration of a model or of its language model.

        Raises:
            ValueError: for a language model of another kind, whose MLP may have another number of matrices.
        """
        text = config.get_text_config()
        if text.model_type not in GATED:
            raise ValueError(
                f"DecoderShape: the language model must be one of {', '.join(sorted(GATED))}, got {text.model_type!r}; "
                "fill in a DecoderShape by hand if its MLP has three matrices"
            )
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            inner=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
        )

    @property
    def matrix(self) -> int:
        """Multiply-accumulates per token in the weight matrices of one layer, which is also their number of weights."""
        attention = self.width * self.head * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.inner

    def kv_bytes(self, element: int) -> int:
        """Bytes of keys and values per token and layer, with elements of so many bytes."""
        return 2 * self.kv_heads * self.head * element


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A CLIP-like vision tower (two MLP matrices, attention among all patches) with the projector behind it.

    Attributes:
        layers: layers that run, also those behind the one whose states are taken.
        width: of a patch.
        inner: width inside the MLP.
        patch: side of a patch in pixels.
        channels: of the picture.
        side: of the picture in pixels.
        prefix: rows beside the patches (1 with a CLS token).
        features: width that enters the projector.
        out: width of a visual token; the projector is two matrices, `features` x `out` and `out` x `out`.
    """

    layers: int
    width: int
    inner: int
    patch: int
    channels: int
    side: int
    prefix: int
    features: int
    out: int

    @classmethod
    def of(cls, config: Any) -> "TowerShape":  # noqa: ANN401
        """From the configuration of a LLaVA-like model.

        Raises:
            ValueError: for a tower that is not CLIP.
        """
        vision = config.vision_config
        if vision.model_type != "clip_vision_model":
            raise ValueError(
                f"TowerShape: the vision tower must be a clip_vision_model, got {vision.model_type!r}; fill in a "
                "TowerShape by hand if its MLP has two matrices"
            )
        taken = config.vision_feature_layer
        return cls(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            inner=vision.intermediate_size,
            patch=vision.patch_size,
            channels=vision.num_channels,
            side=vision.image_size,
            prefix=1,
            features=vision.hidden_size * (1 if isinstance(taken, int) else len(taken)),
            out=config.get_text_config().hidden_size,
        )

    @property
    def patches(self) -> int:
        """Visual tokens of one picture."""
        return (self.side // self.patch) ** 2
