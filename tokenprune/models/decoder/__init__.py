"""Pruning inside the language model, layer by layer."""
