"""The programs of seg-jax, one story a file."""
