"""Models as people hold them: wrappers, compiled graphs, offloaded weights, gradient checkpoints."""
