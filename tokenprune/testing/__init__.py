"""What tests of strategies and adapters need, for this project and for third parties."""

from tokenprune.testing.contract import ContractError, check_strategy
from tokenprune.testing.random_tokens import random_tokens

__all__ = ["ContractError", "check_strategy", "random_tokens"]
