"""What a step may ask of the outside: random generators, the clock, files, variables of other modules."""
