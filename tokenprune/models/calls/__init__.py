"""Calls of the model while a context is open: encoded, chosen, shortened, handed on, or refused."""
