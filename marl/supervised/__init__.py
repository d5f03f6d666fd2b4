"""Supervised learning as a task of the engine: epochs over data sets, losses and metrics."""
