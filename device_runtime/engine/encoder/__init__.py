"""Texts through encoders and translators: vectors, labels, translations."""
