"""States of the kv_cache that are kept, so that the beginning of a prompt is not computed twice."""
