"""A cluster in one machine: nodes, routers and pods as network namespaces."""
