"""Comparisons of every scenario with the unmodified simulator; each module prints a table."""
