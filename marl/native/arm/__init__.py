"""Compiled sources on an emulated 64-bit Arm processor: cross-compiled, and called from this process as ctypes does."""
