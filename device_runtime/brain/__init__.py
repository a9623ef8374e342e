"""Which model answers a question, here or elsewhere, and what is kept of the answer."""
