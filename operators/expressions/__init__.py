"""Expressions over columns: read, found safe, computed."""
