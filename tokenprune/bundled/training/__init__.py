"""Training of the bundled model from nothing: ``python -m tokenprune.bundled.training --out DIR``."""
