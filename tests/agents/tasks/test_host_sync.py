"""Nothing inside a rollout or an epoch's update makes the host wait for the device."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from marl.config import compose
from marl.launch import build

SIZES = ["env.num_envs=8", "algo.rollout_steps=6", "algo.minibatch_size=16", "algo.epochs=2", "frames=1000"]
EVERYTHING = [
    "algo.entropy_coef=0.01",
    "algo.value_norm=popart",
    "algo.normalize_observation=true",
    "algo.clip_schedule=linear",
    "algo.value_clip=0.2",
    "algo.dual_clip=3",
    "algo.reward_norm=std",
]
MEMORY = ["network=lstm", "network.hidden=8", "algo.chunk_length=3", "algo.burn_in=2", "algo.entropy_coef=0.01"]
PARTS = ["experiment=picture_search", "env.size=4", *EVERYTHING]
# What reads a tensor's values on the host, as called from Python and as an operator; then sizes that values decide.
CALLS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "allclose"}
READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZES_BY_VALUE = {"nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave"}


class NoCalls(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in CALLS:
            raise AssertionError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


class NoOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if masked or name in READS | SIZES_BY_VALUE:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting():
    """Fails where the host would wait, were the tensors on a GPU."""
    with NoCalls(), NoOperators():
        yield


def begun(tmp_path, *overrides: str):
    """A trainer and its task after their first iteration, in which optimisers and buffers are made."""
    replayed = any(override.startswith("algo.updates") for override in overrides)
    sizes = [size for size in SIZES if not replayed or not size.startswith("algo.epochs")]
    config = compose.check(compose.compose([*sizes, "trainer.progress=off", "logger=csv", *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    trainer.start(task, tmp_path, **build.build_setup(config))
    task.collect(0)
    for batch in task.batches(0):
        trainer.update(batch)
    return trainer, task


def one_iteration(trainer, task, watch: dict) -> None:
    with watch["rollout"]:
        task.collector.collect(task.policy_generator)
    task.collect(1)  # values and advantages of another rollout: once per iteration, may wait
    with watch["update"]:
        for batch in task.batches(1):
            task.observe(trainer.update(batch))


SLOTS = ["env.scenario=tests.envs.vmas.ends_cases.Visit", "env.continuous_actions=false"]
CASES = [[], EVERYTHING, MEMORY, ["algo=ippo", "env.continuous_actions=false", *EVERYTHING]]
CASES += [[*SLOTS, *EVERYTHING], [*SLOTS, *MEMORY]]  # agents that end each on its own, and masks


@pytest.mark.parametrize("more", CASES)
def test_neither_rollout_nor_update_reads_values(tmp_path, more) -> None:
    trainer, task = begun(tmp_path, *more)
    assert task.env.path == "kernel"
    one_iteration(trainer, task, {"rollout": no_waiting(), "update": no_waiting()})


@pytest.mark.parametrize(
    "more",
    [["algo=matd3"], ["algo=masac", *SLOTS, "algo.n_step=2"], ["algo=iql", *SLOTS]],
    ids=lambda more: more[0].removeprefix("algo="),
)
@pytest.mark.parametrize("priority", [0.0, 0.6])
def test_nor_do_replayed_steps(tmp_path, more, priority) -> None:
    trainer, task = begun(tmp_path, *more, "algo.updates=4", f"algo.priority={priority}")
    one_iteration(trainer, task, {"rollout": no_waiting(), "update": no_waiting()})


def test_the_watch_notices(tmp_path) -> None:
    _, task = begun(tmp_path)
    with no_waiting():
        for waiting in (torch.Tensor.item, bool, float, torch.Tensor.tolist, torch.Tensor.cpu, lambda x: x[x > 0]):
            with pytest.raises(AssertionError, match="waits for the device"):
                waiting(torch.ones(3).sum())
        with pytest.raises(AssertionError, match="waits"):
            task.diagnose()


def test_nor_do_observations_of_several_parts(tmp_path) -> None:
    trainer, task = begun(tmp_path, *PARTS)
    one_iteration(trainer, task, {"rollout": no_waiting(), "update": no_waiting()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [[], EVERYTHING, MEMORY, PARTS])
def test_neither_rollout_nor_update_waits_on_a_gpu(tmp_path, more) -> None:
    trainer, task = begun(tmp_path, "trainer=gpu", *more)

    class Strict(nullcontext):
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    one_iteration(trainer, task, {"rollout": Strict(), "update": Strict()})
