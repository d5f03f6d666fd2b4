"""Checks that a kernel equals its simulator: purity, branches, late states, comparisons in the run."""
