"""Stonechat on Linux boards: set one up, bring bundles to it, look after it."""
