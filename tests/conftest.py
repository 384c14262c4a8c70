"""Shared settings of the test suite."""

import os

# No test may look for anything on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

# Machines are shared: a slow moment is no failure. Failures print the blob that reproduces them.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
