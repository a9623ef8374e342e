"""The folder that a model travels in: its manifest, hashes and signatures."""
