"""Evaluation: protocols, judging, scores with intervals."""
