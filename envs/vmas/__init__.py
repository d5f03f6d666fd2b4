"""VMAS behind the contract: the environment, its simulator and state, resets and the kernel's stepper."""
