"""Learning rules: what each algorithm optimises, and with which networks (PPO, HAPPO, SHAC, behaviour cloning)."""
