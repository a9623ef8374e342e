"""Sentence encoders and translators: their families, their network, its readings, and their conversion to a bundle."""
