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
    pairs: np.ndarray, scores: np.ndarray, players: int, reps: int = 300, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings and their 95 % intervals: a bootstrap over the games, the same ones for all pairs (they share starts).

    Args:
        pairs: int [P, 2]. scores: float [P, E], of every game. players: N. reps: resamples. seed: of the bootstrap.

    Returns:
        ratings float64 [N], bounds float64 [N, 2].
    """
    games = np.full(len(pairs), scores.shape[1], float)
    draws = np.random.default_rng(seed).integers(scores.shape[1], size=(reps, scores.shape[1]))
    again = [ratings(pairs, scores[:, drawn].mean(1), games, players) for drawn in draws]
    return ratings(pairs, scores.mean(1), games, players), np.percentile(again, [2.5, 97.5], axis=0).T
