"""How a pod gets its address and its wire."""
