"""Pruning unmodified Hugging Face models: `prune`, `prune_inputs`, the record, and the building blocks under them."""

from tokenprune.models.version import check_version

check_version()

from tokenprune.models.calls.batch import prune_inputs  # noqa: E402
from tokenprune.models.context import NotEnteredWarning, prune  # noqa: E402
from tokenprune.models.encode.clip import Clip, question_reader  # noqa: E402
from tokenprune.models.errors import UnsupportedError  # noqa: E402
from tokenprune.models.families.adapter import Adapter  # noqa: E402
from tokenprune.models.families.registry import adapter_for, adapters, register_adapter  # noqa: E402
from tokenprune.models.prompt.choose import select_tokens  # noqa: E402
from tokenprune.models.prompt.dense import Prompt, Segment, build_prompt  # noqa: E402
from tokenprune.models.prompt.pruned import PrunedPrompt, compact  # noqa: E402
from tokenprune.models.prompt.turns import CachedPrompt, Overlap, cached_prompt, continue_prompt, overlap  # noqa: E402
from tokenprune.models.read_tokens import read, read_layers  # noqa: E402
from tokenprune.models.reading.vision import Vision  # noqa: E402
from tokenprune.models.record import CallRecord, ImageRecord, Record  # noqa: E402
from tokenprune.models.wrapped.unwrap import unwrap  # noqa: E402

__all__ = [
    "Adapter",
    "CachedPrompt",
    "CallRecord",
    "Clip",
    "ImageRecord",
    "NotEnteredWarning",
    "Overlap",
    "Prompt",
    "PrunedPrompt",
    "Record",
    "Segment",
    "UnsupportedError",
    "Vision",
    "adapter_for",
    "adapters",
    "build_prompt",
    "cached_prompt",
    "check_version",
    "compact",
    "continue_prompt",
    "overlap",
    "prune",
    "prune_inputs",
    "question_reader",
    "read",
    "read_layers",
    "register_adapter",
    "select_tokens",
    "unwrap",
]
