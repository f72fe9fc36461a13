"""Weights from and to files: names, safetensors, Orbax."""
