"""Checkpoint in, bundle out. Runs on a desk machine; nothing here is needed on a board."""
