"""Environments of other libraries behind our contract, and ours behind theirs."""
