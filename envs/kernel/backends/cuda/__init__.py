"""A step for GPUs: the source, what compiles it, the driver that launches it, and a driver that runs it on the CPU."""
