"""Studies of trained agents: what their actions depend on, and games between past versions."""
