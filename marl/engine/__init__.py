"""The training loop and the owners of its state: run state, metrics, updates, checkpoints."""
