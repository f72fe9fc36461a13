"""Drawn worlds with exact masks and expressions that fit one object only."""
