"""What this node's tables should say, and making it so."""
