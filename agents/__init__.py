"""Multi-agent reinforcement learning: tasks, algorithms, models, collection, evaluation, players, deployment."""
