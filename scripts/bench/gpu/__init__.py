"""One command for a machine with a GPU: what is checked and measured there, and the table that comes of it."""
