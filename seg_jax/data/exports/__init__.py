"""Answers out: one writer for each format that others read."""
