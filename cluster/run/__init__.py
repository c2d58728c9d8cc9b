"""A run: driver, its state, its processes."""
