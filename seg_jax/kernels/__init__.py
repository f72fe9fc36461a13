"""Pallas kernels behind the signatures of geometry and models."""
