"""A run held against the truth."""
