"""Who won: shares of games won, drawn and lost, from the returns of all agents.

Shapes: E environments (one game each), A agents in a group.
"""

from collections.abc import Mapping

import numpy as np

OUTCOMES = ("won", "drawn", "lost", "not_lost")


def outcomes(
    returns: Mapping[str, np.ndarray], judged: Mapping[str, np.ndarray], agents: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, float]]:
    """Shares of games by group, and of each of its agents where it has several.

    An agent has won a game in which its return is above that of all other agents, of all groups; it has drawn where
    its return equals the largest of theirs, and else lost.

    Args:
        returns: {group: float64 [E, A]}.
        judged: {group: bool [E, A]} which agents count in which games; a group that is not named: all.
        agents: {group: agent names}.

    Returns:
        {group: {"won", "drawn", "lost", "not_lost": a share from 0 to 1, "AGENT/not_lost": the same, …}}; {} with a
        single agent, who has no opponent.
    """
    everyone = np.concatenate(list(returns.values()), axis=1)  # [E, agents of all groups]
    if everyone.shape[1] < 2:
        return {}
    shares, first = {}, 0
    for name, values in returns.items():
        best = [np.delete(everyone, first + i, axis=1).max(-1) for i in range(values.shape[1])]
        ahead = values - np.stack(best, -1)
        counts = judged.get(name, np.ones_like(values, dtype=bool))
        mine = ahead[counts]
        result = dict(zip(OUTCOMES, (mine > 0, mine == 0, mine < 0, mine >= 0), strict=True))
        if values.shape[1] > 1:
            each = {f"{agent}/not_lost": ahead[counts[:, i], i] >= 0 for i, agent in enumerate(agents[name])}
            result |= {key: games for key, games in each.items() if len(games)}
        shares[name] = {key: float(games.mean()) for key, games in result.items()}
        first += values.shape[1]
    return shares
