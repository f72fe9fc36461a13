"""Text to token ids: tokenizers of the hub, small ones of our own, chat templates."""
