"""The fleet file: devices, links and their settings. Reads no network."""
