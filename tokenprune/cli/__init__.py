"""The command line: `tokenprune compare`, `tokenprune select`, `tokenprune strategies`."""
