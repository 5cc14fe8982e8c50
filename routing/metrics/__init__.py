"""What Prometheus is told: counted at the ports, computed from the last pass when it asks."""
