"""Curricula: what changes of the environment while a run goes on, when, and the environments of each stage."""
