"""Engines of cards that find and read text."""
