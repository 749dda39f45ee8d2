"""Engines of cards whose task is embedding."""
