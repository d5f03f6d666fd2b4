"""Things that happen late or seldom: after a trace, its verification and the start have seen nothing of them."""

import torch
from tests.envs.kernel.zoo.base import Zoo, flat

STORE = torch.zeros(1)


class _Aged(Zoo):
    """Each environment's age in a tensor."""

    def make_world(self, batch_dim, device, **kwargs):
        self.age = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.age = torch.zeros(self.world.batch_dim)
        else:
            self.age[env_index] = 0.0

    def post_step(self):
        self.age = self.age + 1

    def late(self):
        return self.age > 15

class LateAll(_Aged):
    """all() then masked."""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().all():
            r = torch.where(self.late(), 1.0, r)
        return r

class LateMin(_Aged):
    """min"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.age.min() > 10:
            r = torch.where(self.late(), 1.0, r)
        return r

class LateFirst(_Aged):
    """[0]"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late()[0]:
            r = torch.where(self.late(), 1.0, r)
        return r

class LateMean(_Aged):
    """mean"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().float().mean() > 0.5:
            r = torch.where(self.late(), 1.0, r)
        return r

class LateAnd(_Aged):
    """and"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if (agent.state.pos[:, 0] > 0.5).any():
            r = torch.where(self.late(), 1.0, r)
        return r

class LateUnmasked(_Aged):
    """unmasked"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().any():
            r = r + 1.0
        return r

class LateNonzeroLoop(_Aged):
    """nonzero loop"""
    def reward(self, agent):
        r = flat(agent, 0.0)
        for i in self.late().nonzero():
            r[i] = 1.0
        return r

class LateArgwhere(_Aged):
    """argwhere count"""
    def reward(self, agent):
        return flat(agent, float(len(torch.argwhere(self.late()))))

class LateMaskedSelect(_Aged):
    """method masked_select"""
    def reward(self, agent):
        return flat(agent, float(self.age.masked_select(self.late()).numel()))

class LateUniqueC(_Aged):
    """unique_consecutive"""
    def reward(self, agent):
        return flat(agent, float(torch.unique_consecutive(self.late()).numel()))

class LateBincount(_Aged):
    """bincount"""
    def reward(self, agent):
        return flat(agent, float(torch.bincount(self.late().long()).numel()))

class LateWhere1(_Aged):
    """where method"""
    def reward(self, agent):
        return flat(agent, float(len(self.late().nonzero(as_tuple=True)[0])))

class LateFlag(_Aged):
    """shared 0-dim flag"""
    def make_world(self, batch_dim, device, **kwargs):
        self.flag = torch.zeros((), dtype=torch.bool)
        return super().make_world(batch_dim, device, **kwargs)
    def reward(self, agent):
        return torch.where(self.flag, 1.0, flat(agent, 0.0))
    def post_step(self):
        super().post_step()
        self.flag = self.flag | self.late().any()

class LateFlagInplace(_Aged):
    """shared [1] flag in place"""
    def make_world(self, batch_dim, device, **kwargs):
        self.flag = torch.zeros(1)
        return super().make_world(batch_dim, device, **kwargs)
    def reward(self, agent):
        return flat(agent, 0.0) + self.flag
    def post_step(self):
        super().post_step()
        self.flag += self.late().any()

class LateGlobal(_Aged):
    """module global in place"""
    @classmethod
    def restart(cls):
        STORE.zero_()
    def reward(self, agent):
        return flat(agent, 0.0) + STORE
    def post_step(self):
        super().post_step()
        STORE.copy_(torch.maximum(STORE, self.late().any().float()))

class LateClassTensor(_Aged):
    """class attr tensor"""
    BUF = torch.zeros(1)
    @classmethod
    def restart(cls):
        cls.BUF = torch.zeros(1)
    def reward(self, agent):
        return flat(agent, 0.0) + type(self).BUF
    def post_step(self):
        super().post_step()
        type(self).BUF = torch.maximum(type(self).BUF, self.late().any().float())

class LateClosure(_Aged):
    """closure tensor"""
    def make_world(self, batch_dim, device, **kwargs):
        box = torch.zeros(batch_dim)
        def note(mask):
            box[mask] = 1.0
            return box
        self.note = note
        return super().make_world(batch_dim, device, **kwargs)
    def reward(self, agent):
        return self.note(self.late()).clone()

class RareDraw(Zoo):
    """rare reset draw"""
    def make_world(self, batch_dim, device, **kwargs):
        self.hard = torch.zeros(batch_dim)
        return super().make_world(batch_dim, device, **kwargs)
    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.hard = (torch.rand(self.world.batch_dim) < 0.003).float()
        else:
            self.hard[env_index] = (torch.rand(()) < 0.003).float()
    def reward(self, agent):
        return self.hard * 5 + agent.state.pos[:, 0]

class Lcg(_Aged):
    """int hash beyond 2^24"""
    def make_world(self, batch_dim, device, **kwargs):
        self.h = torch.ones(batch_dim, dtype=torch.long)
        return super().make_world(batch_dim, device, **kwargs)
    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.h = torch.ones(self.world.batch_dim, dtype=torch.long)
        else:
            self.h[env_index] = 1
    def post_step(self):
        self.h = self.h * 31 % 1000003
    def reward(self, agent):
        return self.h.float() / 1000003

class LateInt(_Aged):
    """int64 grows beyond 2^24 late"""
    def reward(self, agent):
        return ((self.age.long() ** 6 + 1) % 7).float()

class LateTernary(_Aged):
    """bool() as number"""
    def reward(self, agent):
        return flat(agent, 0.0) + 5.0 * bool(self.late().any())

class LateIndex(_Aged):
    """__index__"""
    def reward(self, agent):
        return flat(agent, [1.0, 2.0][self.late().any()])

class LateFormat(_Aged):
    """format"""
    def reward(self, agent):
        return flat(agent, 1.0 if "True" in f"{self.late().any()}" else 0.0)

class LateRepr(_Aged):
    """repr of tensor"""
    def reward(self, agent):
        return flat(agent, 1.0 if "True" in repr(self.late()) else 0.0)

class LateMaxKey(_Aged):
    """max key"""
    def reward(self, agent):
        return max(self.age - 15, flat(agent, 0.5), key=lambda t: t.sum())

class LateIn(_Aged):
    """in"""
    def reward(self, agent):
        return flat(agent, 1.0 if 20.0 in self.age else 0.0)

class LateIs(_Aged):
    """== True"""
    def reward(self, agent):
        return flat(agent, 1.0 if (self.late().any() == True) else 0.0)  # noqa

class LateMatch(_Aged):
    """match"""
    def reward(self, agent):
        match bool(self.late().any()):
            case True: return flat(agent, 1.0)
            case _: return flat(agent, 0.0)

@torch.jit.script
def scripted(x: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
    if bool((age > 15).any()):
        return x + 1
    return x

class LateScript(_Aged):
    """torch.jit.script branch"""
    def reward(self, agent):
        return scripted(flat(agent, 0.0), self.age)

class LateTryItem(_Aged):
    """try item"""
    def reward(self, agent):
        try:
            return flat(agent, self.age.max().item())
        except Exception:
            return flat(agent, 0.0)

class Vmapped(_Aged):
    """vmap"""
    def reward(self, agent):
        return torch.vmap(lambda p, a: p.sum() * a)(agent.state.pos, self.age)

class LateList(_Aged):
    """list(tensor)"""
    def reward(self, agent):
        return torch.stack([x * 2 for x in self.age])

class LateIsinstanceShape(_Aged):
    """split by sizes"""
    def reward(self, agent):
        return self.age[: self.age.shape[0]] * self.world.batch_dim / self.world.batch_dim

class LateAccu(_Aged):
    """float64"""
    def make_world(self, batch_dim, device, **kwargs):
        self.acc = torch.zeros(batch_dim, dtype=torch.float64)
        return super().make_world(batch_dim, device, **kwargs)
    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None: self.acc = torch.zeros(self.world.batch_dim, dtype=torch.float64)
        else: self.acc[env_index] = 0
    def post_step(self):
        self.acc = self.acc + 0.1
    def reward(self, agent):
        return (self.acc % 1.0).float()

class LateBitwise(_Aged):
    """bit ops"""
    def reward(self, agent):
        a = self.age.long()
        return ((a ^ 5) & 3).float() + (a << 2).float() + (a >> 1).float() + (~a).float()

class LateDiv(_Aged):
    """floor div, negative mod, round"""
    def reward(self, agent):
        a = self.age.long() - 10
        return (a // 3).float() + (a % 4).float() + torch.round(self.age / 2) + torch.fmod(-self.age, 3) + torch.remainder(-self.age, 3)

class LateUint8(_Aged):
    """uint8 wraps"""
    def reward(self, agent):
        return (self.age.to(torch.uint8) * 20).float()

class LateInt32Wrap(_Aged):
    """int32 wraps"""
    def reward(self, agent):
        return (self.age.to(torch.int32) * 200_000_000).float() / 1e9

class LateNan(_Aged):
    """nan clamp"""
    def reward(self, agent):
        x = torch.sqrt(10 - self.age)
        return x.clamp(min=0.0)

class LateNanMax(_Aged):
    """nan max"""
    def reward(self, agent):
        x = torch.sqrt(10 - self.age)
        return torch.maximum(x, self.age) + torch.nan_to_num(x, nan=3.0)

class LateSort(_Aged):
    """argmax ties & sort"""
    def reward(self, agent):
        x = torch.stack([self.age, flat(agent, 12.0), agent.state.pos[:, 0]], -1)
        return x.argmax(-1).float() + x.sort(-1).indices[:, 1] + x.topk(2, -1).indices[:, 1]

class LateSearch(_Aged):
    """bucketize"""
    def reward(self, agent):
        return torch.bucketize(self.age, torch.tensor([3.0, 14.0, 20.0])).float()

class LateTable(_Aged):
    """schedule table indexed by age"""
    def make_world(self, batch_dim, device, **kwargs):
        self.table = torch.linspace(0, 1, 64) ** 2
        return super().make_world(batch_dim, device, **kwargs)
    def reward(self, agent):
        return self.table[self.age.long().clamp(max=63)]

class LateShapeBranch(_Aged):
    """x[mask].numel() with mean"""
    def reward(self, agent):
        sel = self.age[self.late()]
        return flat(agent, 0.0) + (sel.mean() if sel.numel() > 0 else 0.0)

class LateShrink(_Aged):
    """random reset seldom in step"""
    def post_step(self):
        super().post_step()
        self.world.agents[0].state.pos = torch.where(self.late()[:, None], torch.zeros(2), self.world.agents[0].state.pos)
