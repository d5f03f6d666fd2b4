"""What every task shares: engine, networks, optimiser and schedules, checkpoints, data, logging."""
