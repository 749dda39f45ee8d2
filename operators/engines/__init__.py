"""Builders of models: each knows one library, and gives plain arrays to the operators."""
