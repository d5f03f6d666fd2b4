"""A scenario's state outside tensors: its code, attributes, globals and generators, as one digest."""
