"""Where a signal is read: inside the language model or before it, and at which layer."""

from tokenprune.core.signals import FromDecoder, FromInputs, FromStates, Signal


def in_decoder(signal: Signal) -> bool:
    """Tell whether a signal is read inside the language model."""
    return isinstance(signal.source, FromDecoder | FromStates | FromInputs)


def read_before(signal: Signal) -> bool:
    """Tell whether a signal is read at the attention of the layer before a stage's."""
    return isinstance(signal.source, FromDecoder) and signal.source.layer == -1


def read_ahead(signal: Signal) -> bool:
    """Tell whether a signal is read at the attention of the stage's own layer, ahead of it."""
    return isinstance(signal.source, FromDecoder) and signal.source.layer == 0


def known_mid_layer(signal: Signal) -> bool:
    """Tell whether a signal is known as soon as the attention of the layer before is."""
    return not in_decoder(signal) or read_before(signal) or isinstance(signal.source, FromInputs)
