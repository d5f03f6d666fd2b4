"""Copies of environments that live in Python objects: stepped one after another, here or in other processes."""
