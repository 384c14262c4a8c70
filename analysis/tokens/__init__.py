"""Analyses of visual tokens and of what is kept of them."""
