"""The error for calls that cannot be pruned correctly."""


class UnsupportedError(ValueError, NotImplementedError):
    """A way of calling the model, or a strategy, that would give wrong answers; nothing has been computed yet."""
