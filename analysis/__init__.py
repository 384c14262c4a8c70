"""Measurements on tokens, selections and runs."""
