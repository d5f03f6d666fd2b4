"""Starting runs: command lines, building from a configuration, sweeps and tuning."""
