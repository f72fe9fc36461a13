"""CLIP: images and texts in one space, in Flax NNX."""
