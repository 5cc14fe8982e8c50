"""How prefixes travel between machines."""
