"""What one process does for the whole cluster: garbage, and status that joins all nodes."""
