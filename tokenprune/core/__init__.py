"""What a pruning strategy is; knows no model."""
