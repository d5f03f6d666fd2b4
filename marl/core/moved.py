"""Where the classes and functions that files of earlier versions name by dotted paths are now."""

from collections.abc import Mapping
from typing import Any

# Module or MODULE.NAME as an earlier version had it -> as it is now. Entries are for good: runs are kept for years.
MOVED: dict[str, str] = {
    "agents.actor": "agents.models.actor",
    "agents.clone": "agents.tasks.behaviour_cloning",
    "agents.critic": "agents.models.critic",
    "agents.distributions": "agents.models.heads",
    "agents.export": "agents.deploy.export",
    "agents.imitation": "agents.algorithms.cloning_loss",
    "agents.inputs": "agents.models.inputs",
    "agents.normalize": "agents.models.normalization",
    "agents.on_policy": "agents.tasks.on_policy",
    "agents.opponents": "agents.players.scripted",
    "agents.policy": "agents.policies.policy",
    "agents.pool.Keeper": "agents.players.self_play.PoolCheckpointer",
    "agents.ppo": "agents.algorithms.ppo",
    "agents.replay": "agents.evaluation.episode_replays",
    "agents.schedules": "agents.algorithms.coefficients",
    "agents.schedules.KLAdaptive": "agents.algorithms.kl_adaptive.KLAdaptive",
    "envs.gymnasium_env": "envs.adapters.gymnasium_env",
    "envs.hand_out": "envs.adapters.to_gymnasium",
    "envs.host": "envs.adapters.object_env",
    "envs.memory": "envs.toy.cue_memory",
    "envs.taped.Taped": "envs.adapters.replayed_env.ReplayedEnv",
    "envs.torchrl_env": "envs.adapters.torchrl_env",
    "envs.vector_env": "envs.adapters.vector_env",
    "envs.vmas": "envs.vmas.env",
    "marl.callbacks.EarlyStopping": "marl.callbacks.early_stopping.EarlyStopping",
    "marl.comparisons": "marl.losses.comparisons",
    "marl.data.derived": "marl.data.digit_variants",
    "marl.data.made": "marl.data.synthetic",
    "marl.debugging": "marl.callbacks.debugging",
    "marl.engine": "marl.engine.trainer",
    "marl.loggers.CSVLogger": "marl.loggers.loggers.CSVLogger",
    "marl.loggers.MLflowLogger": "marl.loggers.loggers.MLflowLogger",
    "marl.loggers.TensorBoardLogger": "marl.loggers.loggers.TensorBoardLogger",
    "marl.loggers.WandbLogger": "marl.loggers.loggers.WandbLogger",
    "marl.losses.AsymmetricL1": "marl.losses.objectives.AsymmetricL1",
    "marl.losses.BinaryCrossEntropy": "marl.losses.objectives.BinaryCrossEntropy",
    "marl.losses.CrossEntropy": "marl.losses.objectives.CrossEntropy",
    "marl.losses.ELBO": "marl.losses.objectives.ELBO",
    "marl.losses.Penalised": "marl.losses.objectives.Penalised",
    "marl.losses.Transformed": "marl.losses.objectives.Transformed",
    "marl.losses.Weighted": "marl.losses.objectives.Weighted",
    "marl.networks.fused": "marl.networks.fused_mlp",
    "marl.networks.helpers": "marl.native.threads",
    "marl.optim.OptimizerConfig": "marl.optim.optimizer_config.OptimizerConfig",
    "marl.pictures": "marl.callbacks.figures",
    "marl.profiling": "marl.callbacks.profiling",
    "marl.progress": "marl.callbacks.progress",
    "marl.reconstructions": "marl.callbacks.reconstructions",
    "marl.schedule": "marl.optim.lr_schedule",
    "marl.supervised": "marl.supervised.task",
    "marl.tuning": "marl.launch.tuning",
}
NAMING = ("_target_", "lr_lambda")  # keys of a configuration under which a class or function of ours may stand


def current(path: str) -> str:
    """The dotted path under which a class or function is found now; one that never moved stays as it is.

    The longest entry of `MOVED` that the path begins with decides. A number after a space stays: a checkpoint tells
    several callbacks of one class apart by it.
    """
    name, space, number = path.partition(" ")
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        new = MOVED.get(old)
        # Where a module has become a package of its name, deeper paths are those of the package's own modules.
        if new is not None and (not new.startswith(f"{old}.") or len(parts) == end + 1):
            return ".".join([new, *parts[end:]]) + space + number
    return path


def update_config(node: Any) -> Any:
    """A configuration, or a part of one, in which every class and function stands under its path of now."""
    if isinstance(node, Mapping):
        return {
            key: current(value) if key in NAMING and isinstance(value, str) else update_config(value)
            for key, value in node.items()
        }
    return type(node)(map(update_config, node)) if isinstance(node, list | tuple) else node


def update_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content whose configuration and callbacks, keyed by class, have their names of now."""
    updated = dict(state)
    if "config" in state:
        updated["config"] = update_config(state["config"])
    if isinstance(state.get("callbacks"), Mapping):
        updated["callbacks"] = {current(name): saved for name, saved in state["callbacks"].items()}
    return updated
