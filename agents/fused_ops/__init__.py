"""The RL losses' inner operations as compiled functions with their own derivatives."""
