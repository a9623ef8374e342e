"""The network, described once: blocks, tensors, and the functions that compute them."""
