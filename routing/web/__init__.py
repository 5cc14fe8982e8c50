"""What the agent shows over HTTP: metrics, probes and the live page. Read-only."""
