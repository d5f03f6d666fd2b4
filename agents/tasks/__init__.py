"""Learning problems for the engine: on-policy reinforcement learning and behaviour cloning."""
