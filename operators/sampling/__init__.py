"""Which images are chosen, and which stay together."""
