"""Larger models elsewhere: the seam, and what fits it."""
