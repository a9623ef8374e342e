"""Tasks: what comes in, what the answer looks like, and how sure of it a bundle that was trained for it is."""
