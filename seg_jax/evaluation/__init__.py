"""Scores of answers with intervals, and the protocols of each task."""
