"""The dense prompt, what is kept of its images, the shorter prompt, and later turns."""
