"""Elo ratings of players from the games between them, with intervals.

Shapes: N players, P pairs that met, E games of each pair.
"""

import numpy as np

SCALE = 400 / np.log(10)  # points per unit of the logit: 400 points are odds of 10 to 1
DRAWS = 1.0  # the prior: every player drew once against a player of the mean rating, so that none is at infinity


def expected(difference: np.ndarray | float) -> np.ndarray | float:
    """The score, 0 to 1, that a lead of `difference` points leads to expect (Elo 1978)."""
    return 1 / (1 + np.exp(-np.asarray(difference) / SCALE))


def ratings(pairs: np.ndarray, scores: np.ndarray, games: np.ndarray, players: int) -> np.ndarray:
    """The most likely ratings (Bradley and Terry 1952), in Elo points about a mean of 0.

    Maximises sum of games (score log p + (1 - score) log(1 - p)), p = `expected` of the difference, with `DRAWS` as
    the prior; by Newton's method, the problem being convex.

    Args:
        pairs: int [P, 2], who met whom.
        scores: float [P], mean score of the first of each pair: 1 = won all, 0.5 for a draw.
        games: float [P], how many.
        players: N.

    Returns:
        float64 [N].
    """
    logit, (first, second) = np.zeros(players), np.asarray(pairs).T
    for _ in range(50):
        p, prior = expected(SCALE * (logit[first] - logit[second])), expected(SCALE * logit)
        gradient, curvature = DRAWS * (0.5 - prior), np.diag(DRAWS * prior * (1 - prior))
        pull, weight = games * (scores - p), games * p * (1 - p)
        np.add.at(gradient, first, pull)
        np.add.at(gradient, second, -pull)
        for i, j, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(curvature, (i, j), sign * weight)
        step = np.linalg.solve(curvature, gradient)
        logit += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    return SCALE * (logit - logit.mean())


def with_intervals(
    pairs: np.ndarray,
    scores: np.ndarray,
    players: int,
    reps: int = 300,
    seed: int = 0,
    resets: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings and their 95 % intervals: a bootstrap over the games, the same ones for all pairs (they share starts).

    Args:
        pairs: int [P, 2]. scores: float [P, E], of every game. players: N. reps: resamples. seed: of the bootstrap.
        resets: int [E], the reset that each game began from. Games of one have drawn something in common, so that
            whole resets are resampled (the cluster bootstrap, Cameron and Miller 2015). None: each game by itself.

    Returns:
        ratings float64 [N], bounds float64 [N, 2].
    """
    count = scores.shape[1]
    together = np.arange(count) if resets is None else np.unique(resets, return_inverse=True)[1]
    clusters = [np.flatnonzero(together == i) for i in range(together.max() + 1)]

    def rated(columns: np.ndarray) -> np.ndarray:
        return ratings(pairs, scores[:, columns].mean(1), np.full(len(pairs), len(columns), float), players)

    draws = np.random.default_rng(seed).integers(len(clusters), size=(reps, len(clusters)))
    again = [rated(np.concatenate([clusters[i] for i in drawn])) for drawn in draws]
    return rated(np.arange(count)), np.percentile(again, [2.5, 97.5], axis=0).T
