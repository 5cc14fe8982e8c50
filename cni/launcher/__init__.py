"""The exec'd file for hosts without Python: a static program that forwards to the agent."""
