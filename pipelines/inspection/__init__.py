"""What a run is about to do, and what it has done."""
