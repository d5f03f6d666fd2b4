"""States that a run reaches late: the kernel plays on from resets, and each environment stops at an age of its own.

A fresh reset and a few steps don't show what happens at a distance, after a goal, or at a high count. The kernel plays
fast. Until it is wrong it reaches the simulator's own states, and then it is compared there.
"""

from collections.abc import Iterator

import torch

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.tracing.trace import reset_as_drawn
from envs.vmas.world import VmasWorld

PLAYS = tuple((steps, power) for steps in (30, 100, 300) for power in (0.3, 2.0))  # mostly old, mostly young


def late_states(
    template: VmasWorld, kernel: KernelStep, generator: torch.Generator, over: list[torch.Tensor]
) -> Iterator[None]:
    """Puts one late state after another into the template's simulator.

    over: [E] bools that the kernel is bound to write, true where an episode ends: none is played beyond its end.
    """
    pool = template.pool
    for steps, power in PLAYS:
        reset_as_drawn(template)
        kernel.load_state(lambda path: pool.main.tensors[path].value)
        late_state, tables = kernel.state.clone(), {path: table.clone() for path, table in kernel.tables.items()}
        age = (steps * torch.rand(template.num_envs, generator=generator) ** power).long()
        steady = template.random_action(generator)  # half of the environments keep their action, and so come far
        wavers = torch.rand(template.num_envs, generator=generator) < 0.5
        for k in range(steps):
            action = {
                name: torch.where(wavers.view(-1, 1, 1), value, steady[name]).contiguous()
                for name, value in template.random_action(generator).items()
            }
            kernel.bind({("action", name): value.to(kernel.device) for name, value in action.items()})
            with pool.stream:
                kernel.draw(template.device)
            kernel.step()
            age = torch.where((over[0] | over[1]).cpu(), -1, age)
            going = (age > k).to(kernel.device)
            late_state[:, : template.num_envs][:, going] = kernel.state[:, : template.num_envs][:, going]
            for path, table in kernel.tables.items():
                tables[path][going] = table[going]
            if not going.any():
                break
        kernel.state.copy_(late_state)
        for path, table in tables.items():
            kernel.tables[path].copy_(table)
        kernel.fill(pool.main)
        yield
