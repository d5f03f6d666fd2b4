"""Collecting experience: rollouts, the buffers they fill, value estimates and sequences for training."""
