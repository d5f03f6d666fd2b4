"""Gradients through the steps of a VMAS environment; `DifferentiableSteps` is the way in."""
