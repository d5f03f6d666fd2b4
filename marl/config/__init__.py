"""Configurations: composed with Hydra, overridden from a command line."""
