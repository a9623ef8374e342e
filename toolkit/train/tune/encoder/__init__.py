"""Tuning a sentence encoder for a task: one head for each field of the answer, and the layers below it."""
