"""How vectors are put into clusters: what `cluster` is made of."""
