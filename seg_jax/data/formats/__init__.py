"""Readers of published and of users' annotation files."""
