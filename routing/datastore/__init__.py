"""The shared state of the cluster: typed resources, and the stores that keep them."""
