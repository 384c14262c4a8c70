"""A small random model of every family."""
