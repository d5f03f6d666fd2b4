"""Recording one step of a simulator as a flat list of tensor operations."""
