"""The most similar images of a run."""
