"""Layers that every model is built of: attention, norms, blocks, experts."""
