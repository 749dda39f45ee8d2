"""Engines of cards whose task is gaze."""
