"""What applies operators to the images of a shard."""
