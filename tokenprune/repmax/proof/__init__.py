"""Proving that a set is the best: branch and bound, enumeration, MILP, and the tree that a verifier reads."""
