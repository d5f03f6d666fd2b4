"""The server of policies: observations over HTTP to actions, with batches, sessions, versions and limits."""
