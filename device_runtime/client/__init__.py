"""The client library: ask a device or a pool from Python."""
