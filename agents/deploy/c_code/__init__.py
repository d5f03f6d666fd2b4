"""Policies as plain C: one C99 file with everything inside, and a run of it on an emulated microcontroller."""
