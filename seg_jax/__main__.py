"""Lets `python -m seg_jax` do what `seg-jax` does."""

from seg_jax.cli.main import command

if __name__ == "__main__":
    command()
