"""The scalar program of one environment's step: lowering from tensors, memory layout, schedule."""
