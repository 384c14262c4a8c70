"""Shared settings of the test suite."""

import os

# No test may look for anything on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tables are as wide as the command makes them, not as the terminal of whoever runs the tests.
os.environ.pop("COLUMNS", None)

import torch
from hypothesis import settings

# Without a GPU Triton's programs run in Python; it must know before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Machines are shared: a slow moment is no failure. Failures print the blob that reproduces them.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
