"""Answers with fields: labels are scored instead of written, and each field has its confidence."""
