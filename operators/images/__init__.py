"""Bytes to pixels, and what pixels say without a model."""
