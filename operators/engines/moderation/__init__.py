"""Engines of cards whose task is moderation."""
