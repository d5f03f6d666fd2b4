"""A loss and its gradients, captured once as a graph of operations and replayed."""
