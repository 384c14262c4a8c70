"""The RepMax problem: distances, objective, relaxation, and what equal points allow."""
