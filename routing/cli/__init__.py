"""The slash32 command: it prints what the agent believes and computes nothing of its own."""
