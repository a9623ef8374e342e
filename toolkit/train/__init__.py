"""Training: from a task file to a bundle. On a desk machine, with the extra `[train]`."""
