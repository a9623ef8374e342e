"""Graphs of encoders and translators: what emits them in each profile, their constants and their counts."""
