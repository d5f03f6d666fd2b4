"""Observations of several parts: an encoder for each of them, then a network that reads what all of them say."""
