"""Engines of cards whose task is detection."""
