"""Algorithms with a replay buffer: Q-learning with mixers, deterministic policy gradients, soft actor-critic."""
