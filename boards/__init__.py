"""One YAML file per board, and what is computed from them."""
