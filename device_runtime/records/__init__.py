"""Frozen dataclasses whose annotations are the one description of what they hold."""
