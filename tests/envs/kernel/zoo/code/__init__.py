"""How a step may be written: decisions about tensors, indexing, networks, habits, faults that show late."""
