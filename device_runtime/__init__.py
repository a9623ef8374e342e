"""All that a board runs. Imports nothing from converters/, boards/ or toolkit/."""

__version__ = "0.1.0"
