"""What a model says of its tokens: attention modules read at work, and the vision side of a batch."""
