"""Engines of cards whose task is segmentation."""
