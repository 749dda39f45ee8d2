"""A first pipeline from a few answers."""
