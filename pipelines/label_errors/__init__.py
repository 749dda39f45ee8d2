"""The label errors that a run found, listed and shown."""
