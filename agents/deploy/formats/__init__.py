"""Single formats of exported policies: how each is written, and how each is run to compare it with the policy."""
