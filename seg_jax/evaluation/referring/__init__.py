"""Protocols of referring segmentation: their questions, judging, numbers and tables."""
