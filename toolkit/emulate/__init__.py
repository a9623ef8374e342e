"""Emulated boards: the serial protocol's other end on a pseudo terminal."""
