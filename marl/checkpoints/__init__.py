"""Checkpoint files: how they are written and read, resumed from, and transferred to a new run."""
