"""What steps a VMAS environment on a GPU, with the host's part of a rollout made before it."""
