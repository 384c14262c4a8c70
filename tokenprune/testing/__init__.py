"""What tests of strategies and adapters need, for this project and for third parties."""

from tokenprune.testing.contract import ContractError, check_strategy
from tokenprune.testing.random_tokens import random_tokens
from tokenprune.testing.reference import Reference, reference_logits
from tokenprune.testing.tiny.families import tiny_families, tiny_model
from tokenprune.testing.tiny.models import random_image, tiny_llava

__all__ = [
    "ContractError",
    "Reference",
    "check_strategy",
    "random_image",
    "random_tokens",
    "reference_logits",
    "tiny_families",
    "tiny_llava",
    "tiny_model",
]
