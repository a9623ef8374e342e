"""New bundles for a device: two slots, a trial, and a way back."""
