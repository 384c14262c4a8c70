"""From pixels to visual tokens: CLIP beside the model, merging inside the vision tower."""
