"""The way to a person and back: what is worth a look goes out as tasks, what comes back wins over the models."""
