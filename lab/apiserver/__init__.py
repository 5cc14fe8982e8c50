"""An API server for the lab and the tests: small, and true about compare-and-swap."""
