"""What scripts/benchmark.py is made of: the cases it measures, the sides it asks in turn, and its report."""
