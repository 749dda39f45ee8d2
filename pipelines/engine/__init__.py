"""What computes a pipeline's steps, shard by shard."""
