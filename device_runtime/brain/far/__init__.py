"""Larger models elsewhere, behind one seam."""
