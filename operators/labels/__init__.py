"""What may be wrong with labels, and who says so."""
