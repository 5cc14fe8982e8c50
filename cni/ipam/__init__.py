"""Which address a pod gets: pools, blocks, and the node's own allocator."""
