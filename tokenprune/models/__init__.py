"""Pruning unmodified Hugging Face models: `prune`, `prune_inputs`, the record, and the building blocks under them."""

from tokenprune.models.version import check_version

check_version()

from tokenprune.models.adapter import Adapter  # noqa: E402
from tokenprune.models.clip import Clip, question_reader  # noqa: E402
from tokenprune.models.compact import PrunedPrompt, compact  # noqa: E402
from tokenprune.models.context import NotEnteredWarning, prune  # noqa: E402
from tokenprune.models.errors import UnsupportedError  # noqa: E402
from tokenprune.models.families import adapter_for, adapters, register_adapter  # noqa: E402
from tokenprune.models.prompt import Prompt, Segment, build_prompt  # noqa: E402
from tokenprune.models.pruning import prune_inputs  # noqa: E402
from tokenprune.models.reading import read, read_layers  # noqa: E402
from tokenprune.models.record import CallRecord, ImageRecord, Record  # noqa: E402
from tokenprune.models.select import select_tokens  # noqa: E402
from tokenprune.models.turns import CachedPrompt, Overlap, cached_prompt, continue_prompt, overlap  # noqa: E402
from tokenprune.models.unwrap import unwrap  # noqa: E402
from tokenprune.models.vision import Vision  # noqa: E402

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
