"""TorchRL's own collector on a VMAS task, as a side of scripts/benchmark.py: each command is one batch, timed.

The policy is TorchRL's shared 256x256 tanh network with a TanhNormal; VmasEnv and Collector are at their defaults.
"""

import argparse
import json
import time

import torch
from line import Line
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import MultiAgentMLP, ProbabilisticActor, TanhNormal


def make(args: argparse.Namespace) -> Collector:
    env = VmasEnv(args.scenario, num_envs=args.envs, max_steps=100, device=args.device, seed=0,
                  **json.loads(args.scenario_kwargs))  # fmt: skip
    key = env.action_key
    space = env.full_action_spec_unbatched[key]
    agents, features = env.observation_spec[key[0], "observation"].shape[-2:]
    actions = space.shape[-1]
    body = MultiAgentMLP(features, 2 * actions, agents, centralized=False, share_params=True, depth=2, num_cells=256,
                         activation_class=torch.nn.Tanh, device=args.device)  # fmt: skip
    module = TensorDictModule(
        torch.nn.Sequential(body, NormalParamExtractor()),
        in_keys=[(key[0], "observation")], out_keys=[(key[0], "loc"), (key[0], "scale")],
    )  # fmt: skip
    policy = ProbabilisticActor(
        module, spec=space, in_keys=[(key[0], "loc"), (key[0], "scale")], out_keys=[key],
        distribution_class=TanhNormal, distribution_kwargs={"low": space.space.low, "high": space.space.high},
        return_log_prob=True,
    )  # fmt: skip
    return Collector(env, policy, frames_per_batch=args.envs * args.steps, total_frames=-1, device=args.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="balance")
    parser.add_argument("--scenario-kwargs", default="{}", help="JSON")
    parser.add_argument("--envs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    line, args = Line(), parser.parse_args()
    torch.manual_seed(0)
    batches = iter(make(args))
    line.send(ready="collect")
    for _ in line.commands():
        began = time.perf_counter()
        next(batches)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        line.send(collect_s=time.perf_counter() - began)


if __name__ == "__main__":
    main()
