"""Keys and signatures of bundles: what a desk machine does, and a device only checks."""
