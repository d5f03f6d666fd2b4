"""Shows what a run would do, without training: python scripts/show.py schedule|model|graph [configuration key=value …]

  schedule   the learning rate over the run, as a table and as a picture (schedule.png, or out=FILE.png)
  model      layers, shapes, parameters and FLOPs of the networks
  graph      a picture of the networks' layers and what flows between them (graph.png, or out=FILE.png|svg|pdf)

for example: python scripts/show.py schedule algo=mappo scheduler=cosine out=cosine.png
"""

from pathlib import Path

from marl.config import compose
from marl.core import terminal
from marl.core.errors import UserError, closest
from marl.core.look.figures import style
from marl.inspection import model_summary, network_graph
from marl.launch import build, cli

MOST = 1_000_000  # steps of a schedule that are shown: a minute
SUBJECTS = ("schedule", "model", "graph")


def show_model(config: dict) -> None:
    """A table of the layers, and the sums of each part."""
    task = build.build_task(config)
    table = terminal.table("layer", "kind", "output", "parameters", "frozen", "FLOPs per row")
    for layer in model_summary.layers(task):
        numbers = (f"{layer.parameters:,}", f"{layer.frozen:,}" if layer.frozen else "", f"{layer.flops:,.0f}")
        table.add_row(layer.name, layer.kind, "×".join(map(str, layer.shape)), *numbers)
    terminal.console().print(table)
    for name, module in task.parts().items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters")


def show_graph(config: dict, out: Path) -> None:
    """A picture of every network's graph."""
    task = build.build_task(config)
    modules = {name: module for name, module in model_summary.outermost(task.loss).items() if ".networks." not in name}
    # Networks of agents that each have their own are identical: the first one stands for them.
    modules |= {n: m for n, m in model_summary.outermost(task.loss).items() if n.endswith(".networks.0")}
    network_graph.draw(
        {name: network_graph.trace(module, *model_summary.example(module, 2)) for name, module in modules.items()}, out
    )
    print(out)


def show_schedule(config: dict, out: Path) -> None:
    """Learning rates at eleven moments of the run, and the picture of all."""
    trainer, task = build.build_trainer(config), build.build_task(config)
    setup = build.build_setup(config)
    iterations = trainer.max_iterations or task.iterations
    by_step = setup["schedule"].interval == "step"
    steps = iterations * (-(-task.steps_per_iteration // trainer.update_config.accumulate) if by_step else 1)
    if steps > MOST:
        raise UserError(
            f"{iterations:,} iterations: a schedule of {steps:,} steps takes too long to go through; at most {MOST:,}. "
            f"A run of fewer {task.unit} shows the same shape"
        )
    rates = model_summary.rates(
        task, setup["optimizer"], setup["schedule"], iterations, trainer.update_config.accumulate
    )
    moments = sorted({round(i * iterations / 10) for i in range(11)})
    table = terminal.table("iteration", task.unit, *(f"lr of {name}" for name in rates))
    for i in moments:
        table.add_row(f"{i:,}", f"{i * task.units_per_iteration:,}", *(f"{values[i]:.3g}" for values in rates.values()))
    terminal.console().print(table)
    draw(rates, task.unit, task.units_per_iteration, out)
    print(out)


def draw(rates: dict[str, list[float]], unit: str, per_iteration: int, out: Path) -> None:
    """The learning rates over frames or epochs, as a PNG or PDF file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(style()):
        figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
        for name, values in rates.items():
            axes.plot([i * per_iteration for i in range(len(values))], values, label=name)
        axes.set(xlabel=unit, ylabel="learning rate", ylim=(0, None))
        axes.legend()
        try:
            figure.savefig(out, dpi=150)
        except (OSError, ValueError) as error:
            raise UserError(f"out={out}: {error}") from error
        plt.close(figure)


def run(arguments: list[str]) -> None:
    """Show the subject. Raises UserError for an unknown one."""
    subject, *overrides = arguments
    if subject not in SUBJECTS:
        raise UserError(f"cannot show {subject!r}{closest(subject, SUBJECTS)} (allowed are {', '.join(SUBJECTS)})")
    out = [text.removeprefix("out=") for text in overrides if text.startswith("out=")]
    if out and subject == "model":
        raise UserError(f"out={out[-1]}: a model is shown as a table; a schedule and a graph are pictures")
    config = compose.check(compose.compose([text for text in overrides if not text.startswith("out=")]))
    if subject == "model":
        show_model(config)
    elif subject == "graph":
        show_graph(config, Path(out[-1] if out else "graph.png"))
    else:
        show_schedule(config, Path(out[-1] if out else "schedule.png"))


if __name__ == "__main__":
    cli.main(__doc__, run)
