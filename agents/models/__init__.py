"""Networks of agents: actors, critics, action heads, normalisation and hidden state."""
