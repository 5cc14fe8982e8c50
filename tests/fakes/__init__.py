"""slash32 tests."""
