"""Explains a trained run: python scripts/explain.py ckpt=RUN_DIR [option=value …]

ckpt=RUN_DIR|FILE    a run directory, one of its checkpoints, or zoo/NAME (required)
what=attribution     attribution: which inputs a label or an action depends on (integrated gradients; needs the extra
                     `attribution`): red and blue over digits, or a table of actions by parts of the observation
                     features: what named layers give, as a safetensors file
which=last           last | best: which checkpoint of a run directory
rows=null            inputs that are looked at; null: 10 pictures, or 200 observations
out=null             the file to write; null: explained/ in the run directory
steps=64             points of the integral; more of them make shares add up better
group=null           of agents: the group; null: the first
agent=0              of agents: which one of the group
names=null           of agents: names of the observation's features, such as names=[x,y,vx,vy]; null: those that the
                     environment gives its parts, or else their indices
layers=["*"]         of what=features: names of layers, * as in file names, such as layers=["model.body.*"]
seed=0               of agents: the episodes that are played
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from agents.analysis import attribution as agents_attribution
from agents.tasks.rl_task import RLTask
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.inspection import integrated_gradients
from marl.inspection.features import features
from marl.launch import build, cli
from marl.task import Task


@dataclass
class Options:
    """The options above."""

    ckpt: str
    what: Literal["attribution", "features"] = "attribution"
    which: Literal["last", "best"] = "last"
    rows: Annotated[int, Field(ge=1)] | None = None
    out: str | None = None
    steps: Annotated[int, Field(ge=2)] = 64
    group: str | None = None
    agent: Annotated[int, Field(ge=0)] = 0
    names: list[str] | None = None
    layers: list[str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


def explain(chosen: Options) -> Path:
    """Rebuild the run's task with its weights, write what was asked for. Raises UserError where options don't fit."""
    path = run_directory.find(chosen.ckpt, chosen.which)
    _, task = build.rebuild(path)
    task.loss.eval()
    agents = isinstance(task, RLTask)
    folder = run_directory.home_of(chosen.ckpt)
    name = {"attribution": "attribution.png", "features": "features.safetensors"}[chosen.what]
    out = Path(chosen.out) if chosen.out else folder / "explained" / name
    if chosen.what == "features":
        write_features(task, chosen, out)
    elif agents:
        explain_action(task, chosen, out)
    else:
        explain_label(task, chosen, out)
    print(out)
    return out


def rows_of(task: Task, count: int) -> dict[str, Tensor]:
    """Rows of the test split (or the validation's), of every class in turn where there are classes."""
    rows = task.held_out.get("test_", task.held_out[""])
    classes = rows["y"].dtype == torch.int64
    index = integrated_gradients.rows_of_each(rows["y"], count) if classes else torch.arange(min(count, len(rows)))
    return {"x": rows["x"][index], "y": rows["y"][index]}


def explain_label(task: Task, chosen: Options, out: Path) -> None:
    """Which inputs speak for the label that the model gives: over pictures, or as a table."""
    rows = rows_of(task, chosen.rows or 10)
    x = rows["x"]
    with torch.no_grad():
        outputs = task.loss.outputs(x)
        if outputs.dim() != 2:
            raise UserError(f"ckpt={chosen.ckpt}: single inputs are explained, not this run's pairs or triplets")
        label = outputs.argmax(-1) if outputs.shape[-1] > 1 else torch.zeros(len(x), dtype=torch.long, device=x.device)

    picture = x.dim() == 4
    baseline = torch.zeros_like(x[:1]) if picture else task.loss.shift.expand_as(x[:1])
    shares, error = by_row(task, x, baseline, chosen.steps, label)
    print(f"shares add up to the output's difference from the baseline's within {error:.2g}")
    if picture:
        titles = [f"{kind}" if rows["y"].dtype != torch.int64 else f"{rows['y'][i].item()}: says {kind}"
                for i, kind in enumerate(label.tolist())]  # fmt: skip
        integrated_gradients.draw_pictures(x.cpu(), shares.cpu(), titles, out)
    else:
        parts = chosen.names or [str(i) for i in range(x[0].numel())]
        table = shares.abs().mean(0).flatten().unsqueeze(0).cpu().numpy()
        check_names(parts, table.shape[1])
        integrated_gradients.draw_parts(
            table, ["output"], parts, f"{out.parent.parent.name}: what the output depends on", out
        )


def by_row(task: Task, x: Tensor, baseline: Tensor, steps: int, label: Tensor) -> tuple[Tensor, float]:
    """Integrated gradients row by row, since every row has a label of its own."""
    all_shares, worst = [], 0.0
    for i in range(len(x)):
        kind = int(label[i])
        shares, error = integrated_gradients.integrated_gradients(
            lambda inputs, kind=kind: task.loss.outputs(inputs)[..., kind], x[i : i + 1], baseline, steps
        )
        all_shares.append(shares)
        worst = max(worst, error)
    return torch.cat(all_shares), worst


def explain_action(task: RLTask, chosen: Options, out: Path) -> None:
    """Which parts of its observation an agent's action depends on."""
    group = chosen.group or next(iter(task.loss.actors))
    observed = agents_attribution.observations(task, chosen.rows or 200, chosen.seed, group)
    if chosen.agent >= observed.shape[1]:
        raise UserError(f"agent={chosen.agent}: group {group} has the agents 0 to {observed.shape[1] - 1}")
    outputs, table, error = agents_attribution.attribute(task.loss.actors[group], observed, chosen.agent, chosen.steps)
    print(f"shares add up to the action's difference from that at the mean observation within {error:.2g}")
    spec, own = task.env.spec.groups[group], table[:, : observed.shape[-1]]
    if chosen.names:
        check_names(chosen.names, observed.shape[-1])
        parts = list(chosen.names)
    else:
        parts, own = agents_attribution.by_name(own, spec)
    table = torch.cat([own, table[:, observed.shape[-1] :]], 1)
    parts += ["others"] * (table.shape[1] - len(parts))
    ranked = table.sum(0).argsort(descending=True)[:5].tolist()
    print("most: " + ", ".join(f"{parts[i]} ({table[:, i].mean():.3g})" for i in ranked))
    agent = spec.agents[chosen.agent]
    integrated_gradients.draw_parts(table.cpu().numpy(), outputs, parts, f"what {agent}'s action depends on", out)


def check_names(names: list[str], count: int) -> None:
    """Raise UserError unless there are `count` names."""
    if len(names) != count:
        raise UserError(f"names=[{','.join(names)}]: {len(names)} names for an observation of {count} parts")


def write_features(task: Task, chosen: Options, out: Path) -> None:
    """What named layers give for some rows, as tensors in a safetensors file."""
    from safetensors.torch import save_file

    agents = isinstance(task, RLTask)
    with torch.no_grad(), features(task.loss, chosen.layers or ["*"]) as layer_outputs:
        if agents:
            group = chosen.group or next(iter(task.loss.actors))
            x = agents_attribution.observations(task, chosen.rows or 200, chosen.seed, group)
            layer_outputs.clear()
            task.loss.actors[group](x)
        else:
            x = rows_of(task, chosen.rows or 10)["x"]
            task.loss.outputs(x)
    tensors = {"input": x, **layer_outputs}
    for name, value in tensors.items():
        print(f"{name}: {list(value.shape)}, mean {value.float().mean():.4g}, deviation {value.float().std():.4g}")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, out)


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: explain(options.parse(Options, arguments)))
