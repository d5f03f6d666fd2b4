"""What policy heads are made of: their base, and heads that join others."""
