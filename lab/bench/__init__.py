"""How fast the CNI plugin is, beside Debian's ptp and host-local, and beside the kernel alone."""
