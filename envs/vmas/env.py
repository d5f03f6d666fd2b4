"""VMAS behind the contract: any scenario, by a compiled kernel or by the simulator itself."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from envs.base import STATE, DeviceState, Env, EnvError, Transition
from envs.kernel.verification.audit import StepAudit
from envs.vmas.agent_masks import drop
from envs.vmas.gpu.device_stepper import DeviceStepper
from envs.vmas.kernel_stepper import KernelStepper
from envs.vmas.simulator import Simulator
from envs.vmas.world import VmasWorld, find_device

MOST = 10_000_000  # environments; more would take minutes to say that there is no memory


class SlowPath(UserWarning):
    """A scenario has no kernel, and the warning says why; `env.fast=off` asks for none, without the warning."""


class VmasEnv(Env):
    """E copies of a VMAS scenario (Bettini et al. 2022), each restarted on its own when it ends.

    An environment that ends is continued from a freshly reset state drawn from a pool: `where(done, fresh, state)` on
    every tensor of the simulator's state, with no loop over environments and nothing leaving the device. The pool is
    reset every `pool_every` steps. `max_steps` truncates, and never terminates. The environment's randomness is
    its own stream: other environments and the caller's global generators are neither read nor moved.

    scenario: VMAS's name ("balance", "mpe/simple_spread" or just "simple_spread", "debug/goal") or the dotted path of
        your own class. scenario_kwargs: its keyword arguments.
    words: what agents say (those that are not silent) with continuous_actions: "continuous", `dim_c` numbers in [0, 1],
        or "discrete", a choice of one of `dim_c` words, heard as one-hot: such groups have hybrid actions.
    heterogeneous: groups whose agents differ in sizes or ranges are split ("split") or zero-padded ("pad").
    groups: {group: agent names or prefixes} instead of one group per name prefix.
    global_state: also return position, velocity, rotation and angular velocity of every entity, [E, S].
    observe_time: the share of the episode that remains as the last feature of every observation and of the global
        state (`envs.remaining_time`).
    pool_every: steps between resets of the pool. pool_size: its states, default max(num_envs, 64) + 1; one more where
        it equals num_envs. Scenarios that draw a value for the whole batch at reset (listed in `shared_draws`, e.g. the
        goal of simple_speaker_listener) draw it with each new pool, every max_steps steps instead: then all
        environments start a new episode together.
    fast: "auto" steps by a generated kernel (envs/kernel, docs/kernels.md) where the scenario allows it and a compiler
        is at hand, "kernel" insists, "off" runs the simulator eagerly. `path` says which it is, `why_eager` why not.

    Raises EnvError for unknown scenarios, keywords and impossible combinations.
    """

    cheap = {"num_envs": 2, "fast": "off", "pool_size": None}
    compiles = True

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As other environments; and `fast` may change, since both paths do the same to rounding."""
        return key != "fast" and super().keeps_on_resume(key)

    def __init__(
        self,
        scenario: str = "balance",
        num_envs: Annotated[int, Field(ge=1, le=MOST)] = 60,
        max_steps: Annotated[int, Field(ge=1)] | None = 100,
        continuous_actions: bool = True,
        multi_discrete: bool = False,
        words: Literal["continuous", "discrete"] = "continuous",
        heterogeneous: Literal["split", "pad"] = "split",
        groups: dict[str, list[str]] | None = None,
        global_state: bool = False,
        observe_time: bool = False,
        scenario_kwargs: dict[str, Any] | None = None,
        pool_every: Annotated[int, Field(ge=1)] = 100,
        pool_size: Annotated[int, Field(ge=1, le=MOST)] | None = None,
        fast: Literal["auto", "kernel", "off"] = "auto",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = find_device(device)
        audit = StepAudit() if fast != "off" and self.device.type in ("cpu", "cuda") else None
        self.world = VmasWorld(
            scenario,
            num_envs,
            max_steps,
            continuous_actions,
            multi_discrete,
            heterogeneous,
            groups,
            global_state,
            scenario_kwargs,
            pool_every,
            pool_size,
            seed,
            self.device,
            audit,
            words,
            observe_time,
        )
        self.scenario, self.num_envs, self.spec = scenario, num_envs, self.world.spec
        self.settings, self.shared_draws = self.world.settings, self.world.shared_draws
        self.stepper: KernelStepper | None = None
        self._why = f"env.fast={fast}"
        if fast != "off":
            self._choose(fast, audit)

    def _choose(self, fast: str, audit: StepAudit | None) -> None:
        """Takes the kernel path if there is a kernel."""
        if audit is None:
            self._why = f"there are kernels for CPUs and NVIDIA's GPUs, not for {self.device.type}"
        elif audit.reason or self.world.pool.carried:
            rows = ", ".join(self.world.pool.carried.names)
            self._why = audit.reason or f"the scenario keeps environments' state in {rows}"
        else:
            stepper = (DeviceStepper if self.device.type == "cuda" else KernelStepper)(self.world)
            self._why = stepper.why
            if not stepper.why:
                self.stepper = stepper
                return
        if fast == "auto" and audit is not None:
            warnings.warn(
                f"{self.scenario} steps eagerly, tens of times slower than by a kernel: {self._why}",
                SlowPath,
                stacklevel=3,
            )
        elif fast == "kernel":
            raise EnvError(f"env.fast=kernel is not possible for {self.scenario!r}: {self._why}.")

    @property
    def path(self) -> Literal["kernel", "eager"]:
        """Which way steps are made now."""
        return "eager" if self.stepper is None or self.stepper.kernel is None else "kernel"

    @property
    def why_eager(self) -> str:
        """Why there is no kernel, in one sentence; "" where there is one."""
        return self._why if self.stepper is None else self.stepper.why

    @property
    def simulator(self) -> Simulator:
        """VMAS's environment, its tensors as they are now. Changes to them count from the next step on."""
        if self.stepper is not None:
            self.stepper.store()
            self.stepper.load()
        return self.world.simulator

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all environments: {group: float32 [E, A, F]} and the global state float32 [E, S] or None.

        A seed restarts the random stream: the states are those of `vmas.make_env(…).reset(seed=seed)`, unless the
        scenario has `shared_draws`. Without one the stream goes on.
        """
        observation = self.world.reset(seed)
        if self.stepper is not None:
            self.stepper.load()
        state = observation.pop(STATE, None)
        if self.world.agent_masks is not None:
            drop(observation)
        return observation, state

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """See `Env.masks`; the scenario says them (`envs.vmas.agent_masks`)."""
        masks = self.world.masks()
        return {name: {kind: mask.clone() for kind, mask in kinds.items()} for name, kinds in masks.items()}

    def final_masks(self) -> dict[str, Tensor]:
        """See `Env.final_masks`."""
        masks = self.world.agent_masks
        kinds = {} if masks is None or not masks.chooses else (masks.led or masks.now)
        return {name: mask["action"] for name, mask in kinds.items()}

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of all environments with {group: [E, A, D]}; those that end are restarted within it.

        Raises EnvError for actions of other groups or shapes, ActionError for what is no number or none of the choices.
        """
        return self.world.step(action) if self.stepper is None else self.stepper.step(action)

    def figures(self) -> dict[str, float]:
        """ "kernel_checks": how often the kernel was compared with the simulator in this process."""
        if self.stepper is None:
            return {}
        self.stepper.check_actions(ask=True)
        return {"kernel_checks": float(self.stepper.recheck.checks)}

    def bind_rollout(self, *buffers: Any, **named: Any) -> None:
        """See `Env.bind_rollout`; a kernel writes to the buffers itself."""
        if self.stepper is not None:
            self.stepper.bind_rollout(*buffers, **named)
        else:
            super().bind_rollout(*buffers, **named)

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """See `Env.step_into`."""
        if self.stepper is not None:
            self.stepper.step_into(t, action)
        else:
            super().step_into(t, action)

    def prepare(self, steps: int) -> None:
        """See `Env.prepare`; on a GPU with a kernel nothing but its launches is left to the steps."""
        if isinstance(self.stepper, DeviceStepper):
            self.stepper.prepare(steps)

    def device_state(self) -> DeviceState | None:
        """See `Env.device_state`."""
        return self.stepper.device_state() if isinstance(self.stepper, DeviceStepper) else None

    @property
    def why_not_captured(self) -> str:
        """Why rollouts on a GPU are no graphs though there is a kernel; "" where they are."""
        return self.stepper.why_not_captured if isinstance(self.stepper, DeviceStepper) else ""

    @torch.no_grad()
    def set_progress(self, progress: float) -> None:
        """See `Env.set_progress`. A scenario reads it where its class says `reads_progress = True`.

        There `self.progress` is float32 [E] (docs/guides/extending.md). The pool is reset with the new value,
        unless there are `shared_draws`.
        """
        if not self.world.reads_progress:
            return
        if self.stepper is not None:
            self.stepper.store()
        if self.world.set_progress(progress) and self.stepper is not None:
            self.stepper.load()

    def refresh_pool(self) -> None:
        """Reset the pool now: new states for environments that end from here on."""
        if self.stepper is not None:
            self.stepper.store()
            self.stepper.load()
        self.world.pool.refresh()

    @torch.no_grad()
    def snapshot(self) -> dict[str, Tensor]:
        """Everything that decides the next steps, the pool and all random streams included, as cloned tensors."""
        if self.stepper is not None:
            self.stepper.store()
        return self.world.snapshot()

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot of an environment with the same settings; raises EnvError for another's."""
        self.world.restore(snapshot)
        if self.stepper is not None:
            self.stepper.load()
