"""Elo: two players by hand, a known field recovered, intervals that hold it, and players who never lose."""

import numpy as np

from marl.report.elo import expected, ratings, with_intervals


def test_two_players_by_hand():
    pair = np.array([[0, 1]])
    lead = -np.subtract(*ratings(pair, np.array([0.75]), np.array([1e9]), 2)[::-1])
    np.testing.assert_allclose(lead, 400 * np.log10(3), rtol=1e-6)  # odds of 3 to 1
    np.testing.assert_allclose(expected(lead), 0.75)
    assert ratings(pair, np.array([0.5]), np.array([10.0]), 2).tolist() == [0.0, 0.0]


def test_a_known_field_is_found_within_its_intervals():
    true = np.array([-300.0, -50.0, 0.0, 120.0, 230.0])
    pairs = np.array([(i, j) for i in range(5) for j in range(5) if i != j])
    p = expected(true[pairs[:, 0]] - true[pairs[:, 1]])
    scores = (np.random.default_rng(0).random((len(pairs), 400)) < p[:, None]).astype(float)
    estimate, bounds = with_intervals(pairs, scores, 5, reps=200)
    assert np.abs(estimate - true).max() < 40
    assert ((bounds[:, 0] < estimate) & (estimate < bounds[:, 1])).all()
    assert ((bounds[:, 0] <= true) & (true <= bounds[:, 1])).sum() >= 4
    few, wide = with_intervals(pairs, scores[:, :20], 5, reps=200)
    assert (np.diff(wide) > np.diff(bounds)).all()


def test_who_never_loses_stays_finite_and_more_games_say_more():
    pair = np.array([[0, 1]])
    leads = [ratings(pair, np.array([1.0]), np.array([float(n)]), 2)[0] for n in (1, 10, 100)]
    assert 0 < leads[0] < leads[1] < leads[2] < 1000


def test_the_estimate_is_the_top_of_the_likelihood():
    pairs, scores, games = np.array([[0, 1], [1, 2], [2, 0]]), np.array([0.9, 0.6, 0.3]), np.array([7.0, 20.0, 3.0])

    def likelihood(elo):
        p = expected(elo[pairs[:, 0]] - elo[pairs[:, 1]])
        p0 = expected(elo)
        return (games * (scores * np.log(p) + (1 - scores) * np.log(1 - p))).sum() + 0.5 * np.log(p0 * (1 - p0)).sum()

    estimate = ratings(pairs, scores, games, 3)
    draws = np.random.default_rng(1)
    assert all(likelihood(estimate) >= likelihood(estimate + (d := draws.normal(size=3)) - d.mean()) for _ in range(50))


def test_games_that_share_a_draw_say_less_and_each_by_itself_says_the_same():
    pair, sources = np.array([[0, 1]]), np.random.default_rng(2)
    chances = sources.random(10).repeat(20)  # what a reset drew decides most
    scores, resets = (sources.random((1, 200)) < chances).astype(float), np.arange(200) // 20
    apart, together = (with_intervals(pair, scores, 2, resets=which) for which in (None, resets))
    assert (apart[0] == together[0]).all()
    widths = [np.diff(bounds)[0, 0] for _, bounds in (apart, together)]
    between = np.sqrt(1 + 19 * _within(scores[0].reshape(10, 20)))  # the design effect (Kish 1965)
    np.testing.assert_allclose(widths[1] / widths[0], between, rtol=0.25)
    alone = with_intervals(pair, scores, 2, resets=np.arange(200))
    assert all((one == other).all() for one, other in zip(apart, alone, strict=True))


def _within(scores):
    """The correlation of two games of one reset: of variances, by one-way analysis."""
    between, inside = 20 * scores.mean(1).var(ddof=1), scores.var(1, ddof=1).mean()
    return (between - inside) / (between + 19 * inside)
