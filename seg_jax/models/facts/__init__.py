"""What a port says of its family of models, as plain values and functions."""
