"""Episodes of trained policies: their statistics, recorded data sets and replays."""
