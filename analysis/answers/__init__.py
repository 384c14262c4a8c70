"""Analyses of what the model answers: damage, turns, cases, ablation, gap."""
