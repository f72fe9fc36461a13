"""seg-jax teaches vision-language models to point, box and outline objects in plain text."""

__version__ = "0.1.0"
