"""Where Python can hold state: containers, attributes, closures, caches, raw memory, tensors that are shared."""
