"""One adapter for each family of models, and how the one that fits is found."""
