"""Values of actions for algorithms that learn from replayed steps: critics, mixers of a team, and their targets."""
