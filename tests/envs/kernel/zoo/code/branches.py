"""Python decisions about tensors: over the batch, both ways; loops, sorting, comprehensions, and/or/not."""

from tests.envs.kernel.zoo.base import Zoo, flat


class AnyReturns(Zoo):
    """`if (d < 0.3).any(): return 1`: one environment near the middle pays all of them."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        if (agent.state.pos.norm(dim=-1) < 0.3).any():
            return flat(agent, 1.0)
        return flat(agent, 0.0)


class NotAny(Zoo):
    """`if not (…).any()` decides what all get."""

    EXPECT = "eager"

    def reward(self, agent):
        if not (agent.state.pos.norm(dim=-1) < 0.3).any():
            return flat(agent, -1.0)
        return agent.state.pos[:, 0]


class AnyRare(Zoo):
    """A condition over the batch that comes true about once in a hundred steps."""

    EXPECT = "eager"

    def reward(self, agent):
        bonus = 5.0 if (agent.state.pos.abs().amax(-1) < 0.03).any() else 0.0
        return agent.state.pos[:, 0] + bonus


class MeanBelow(Zoo):
    """`if x.mean() < c`."""

    EXPECT = "eager"

    def reward(self, agent):
        if agent.state.pos[:, 0].mean() < 0.1:
            return agent.state.pos[:, 0]
        return agent.state.pos[:, 1]


class AllInside(Zoo):
    """`if (…).all()` decides for everyone."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        return flat(agent, 1.0) if (agent.state.pos.abs() < 0.8).all() else flat(agent, 0.0)


class MaxAbove(Zoo):
    """`if x.max() > c` decides for everyone."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0]
        if value.max() > 0.7:
            value = value * 0.5
        return value


class SumOfDone(Zoo):
    """`if done.sum() >= 2`: two environments at once."""

    EXPECT = "eager"

    def reward(self, agent):
        near = agent.state.pos[:, 0] > 0.4
        return flat(agent, 2.0) if near.sum() >= 2 else flat(agent, 0.5)


class AnyMasked(Zoo):
    """`if hit.any(): r[hit] += 1`: a shortcut, exact for each environment."""

    EXPECT = "kernel"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        hit = agent.state.pos.norm(dim=-1) < 0.3
        if hit.any():
            value[hit] += 1.0
        return value


class AnyWithElse(Zoo):
    """The shortcut's `else` does something else: no shortcut."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        hit = agent.state.pos.norm(dim=-1) < 0.3
        if hit.any():
            value[hit] += 1.0
        else:
            value = value - 1.0
        return value


class AnyForgetsOne(Zoo):
    """Under `if hit.any()` the hit ones are paid, and everyone pays a fee."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        hit = agent.state.pos.norm(dim=-1) < 0.3
        if hit.any():
            value[hit] += 1.0
            value -= 0.1
        return value


class ShortcutReturn(Zoo):
    """`if not hit.any(): return zeros`: exact, for zeros is what each would get."""

    EXPECT = "either"

    def reward(self, agent):
        hit = agent.state.pos.norm(dim=-1) < 0.3
        if not hit.any():
            return flat(agent, 0.0)
        return hit.float() * agent.state.pos[:, 0]


class AndOr(Zoo):
    """`and`, `or` between conditions over the batch."""

    EXPECT = "eager"

    def reward(self, agent):
        pos = agent.state.pos
        if (pos[:, 0] > 0.2).any() and ((pos[:, 1] > 0.5).any() or (pos[:, 1] < -0.5).all()):
            return flat(agent, 1.0)
        return flat(agent, 0.0)


class NotTensor(Zoo):
    """`not` of a single truth of the batch."""

    EXPECT = "eager"

    def reward(self, agent):
        quiet = not (agent.state.vel.abs() > 0.15).any()
        return flat(agent, float(quiet))


class Ternary(Zoo):
    """A ternary within an expression."""

    EXPECT = "eager"

    def reward(self, agent):
        return agent.state.pos[:, 0] * (2.0 if (agent.state.pos[:, 1] > 0.6).any() else 1.0)


class BoolOf(Zoo):
    """`bool(tensor)` kept in a variable, used later."""

    EXPECT = "eager"

    def reward(self, agent):
        found = bool((agent.state.pos[:, 1] > 0.6).any())
        bonus = 1.0 * found
        return agent.state.pos[:, 0] + bonus


class Comprehension(Zoo):
    """A comprehension that keeps agents by a condition over the batch."""

    EXPECT, AGENTS = "eager", 2

    def reward(self, agent):
        near = [a for a in self.world.agents if (a.state.pos.norm(dim=-1) < 0.4).any()]
        return flat(agent, float(len(near)))


class AssertAside(Zoo):
    """An assert whose condition counts as it is checked."""

    EXPECT, CAUSE = "eager", "checks|branches.py"

    def make_world(self, batch_dim, device, **kwargs):
        self.checks = []
        return super().make_world(batch_dim, device, **kwargs)

    def _check(self, pos):
        self.checks.append(0)
        return pos.isfinite().all()

    def reward(self, agent):
        assert self._check(agent.state.pos), "a place that is no number"
        return agent.state.pos[:, 0] + (len(self.checks) > 200)


class AssertPure(Zoo):
    """An assert about the state, without effects."""

    EXPECT = "kernel"

    def reward(self, agent):
        assert (agent.state.pos.abs() < 1000).all(), "far away"
        return agent.state.pos[:, 0]


class Try(Zoo):
    """A branch over the batch by an exception that is caught."""

    EXPECT = "eager"

    def reward(self, agent):
        try:
            assert (agent.state.pos[:, 1] < 0.7).all()
            return flat(agent, 0.0)
        except AssertionError:
            return flat(agent, 1.0)


class Match(Zoo):
    """A `match` on the truth of a condition over the batch."""

    EXPECT = "eager"

    def reward(self, agent):
        match bool((agent.state.pos[:, 1] > 0.6).any()):
            case True:
                return flat(agent, 1.0)
            case _:
                return agent.state.pos[:, 0]
