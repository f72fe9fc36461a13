"""Supervised and reinforcement learning: state, optimizer, steps, checkpoints."""
