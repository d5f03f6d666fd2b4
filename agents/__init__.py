"""IPPO and MAPPO: actor, critic, advantage, PPO loss, the on-policy task, evaluation of policies."""
