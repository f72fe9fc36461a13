"""Text to meaning and back: outlines, chat turns, tokens."""
