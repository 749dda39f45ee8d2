"""Engines of cards whose task is image-text-to-text."""
