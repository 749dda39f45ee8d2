"""The types of columns, and their rows as arrays."""
