"""A bundle's model on this machine: prompt in, text out."""
