"""Every scenario of the zoo by default and by the simulator: the same numbers, or a sentence that names the cause."""

import copy
import inspect
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from envs.base import EnvError
from envs.vmas.env import VmasEnv
from tests.envs.kernel.zoo import scenarios
from tests.envs.kernel.zoo.base import EXPECTATIONS, Zoo
from tests.fixtures.kernels import kernels_made_anew

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")

SCENARIOS = scenarios()
STEPS, TOLERANCE, SEED = 400, 1e-4, 3
KERNEL_STEPS = 260  # where the numbers of both paths are all there is to see: what comes late comes by step 251
EAGER_STEPS = 60  # of a default that says it is eager, past a time limit: from there on both runs are the same code
# The simulator plays on alone only where the scenario says what must be seen later.
SAYS_MORE = {path for path, cls in SCENARIOS.items() if cls.RAISES or cls.holds.__func__ is not Zoo.holds.__func__}
CASES = [(path, 5) for path in SCENARIOS] + [(path, 1) for path, cls in SCENARIOS.items() if "ALONE" in vars(cls)]
OUTCOMES: dict[tuple[str, int], str] = {}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Every kernel is traced and verified again."""
    folder = tmp_path_factory.mktemp("kernels")
    with kernels_made_anew(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_KERNEL_CACHE", str(folder))
        yield


def short(path: str) -> str:
    """The file and the class of a scenario."""
    return ".".join(path.split(".")[-2:])


class Run:
    """One environment, played: its path, its log {name: [T, E, …]}, and what it raised at which step."""

    def __init__(self, path: str, num_envs: int, fast: str, steps: int = STEPS) -> None:
        SCENARIOS[path].restart()
        self.env, self.error, self.steps, self.limit = None, None, 0, steps
        rows: dict[str, list[torch.Tensor]] = {}
        try:
            self.env = VmasEnv(path, num_envs=num_envs, max_steps=50, seed=SEED, fast=fast)
            self.path, self.why = self.env.path, self.env.why_eager
            if fast == "auto" and self.path == "eager":
                self.limit = steps = min(steps, EAGER_STEPS)
            generator = torch.Generator().manual_seed(0)
            for self.steps in range(1, steps + 1):
                self._note(rows, self.env.step(self.env.random_action(generator)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other path must raise it too
            self.error = error
        self.log = {name: torch.stack(values) for name, values in rows.items()}

    def first(self, steps: int) -> "Run":
        """The same run as it was after so many steps."""
        if self.steps <= steps:
            return self
        earlier = copy.copy(self)
        earlier.error, earlier.steps = None, steps
        earlier.log = {name: values[:steps] for name, values in self.log.items()}
        return earlier

    def _note(self, rows, step) -> None:
        values = {"ended": step.done, "terminated": step.terminated, "truncated": step.truncated}
        for group, value in step.observation.items():
            values |= {"observation": value, "final": step.next_observation[group], "reward": step.reward[group]}
            values |= {f"info {name}": info for name, info in step.info[group].items()}
        for name, value in values.items():
            rows.setdefault(name, []).append(value.clone())


def difference(ours: Run, theirs: Run, exact: bool) -> str:
    """Where two runs differ, or nothing; a longer one is looked at as far as the other went."""
    theirs = theirs.first(ours.steps) if not ours.error else theirs
    errors = [
        f"{type(run.error).__name__} at step {run.steps}: {run.error}" if run.error else "" for run in (ours, theirs)
    ]
    if type(ours.error) is not type(theirs.error) or ours.steps != theirs.steps:
        return f"ends by {errors[0] or 'nothing'}; the simulator's by {errors[1] or 'nothing'}"
    if ours.log.keys() != theirs.log.keys():
        return f"gives {sorted(ours.log)}; the simulator {sorted(theirs.log)}"
    for name, b in theirs.log.items():
        a = ours.log[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {a.dtype} {list(a.shape)}; the simulator's {b.dtype} {list(b.shape)}"
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        if not exact:
            same |= (a - b).abs() <= TOLERANCE * b.abs().clamp(min=1)
        if not same.all():
            first = (~same).flatten(1).any(1).nonzero()[0].item()
            return f"{name} differs in {int((~same).sum())} of {same.numel()} numbers, first at step {first + 1}"
    return ""


def one_sentence(why: str) -> bool:
    """Whether it can be printed as it is: one line, no traceback, no object's address."""
    return bool(why) and "\n" not in why and len(why) < 400 and "Traceback" not in why and " at 0x" not in why


def names_the_cause(cls: type[Zoo], why: str) -> bool:
    """Whether a sentence names the scenario's file, or the attribute, variable or function that is at fault."""
    return Path(inspect.getfile(cls)).name in why or bool(cls.CAUSE and re.search(cls.CAUSE, why))


@pytest.mark.parametrize(
    ("path", "num_envs"), CASES, ids=[f"{short(path)}{'' if n == 5 else '-alone'}" for path, n in CASES]
)
def test_the_default_is_the_simulator(path, num_envs):
    cls = SCENARIOS[path]
    steps = (STEPS if path in SAYS_MORE else KERNEL_STEPS) if cls.REPEATS else 3
    ours = Run(path, num_envs, "auto", steps)
    theirs = Run(path, num_envs, "off", steps if path in SAYS_MORE else ours.limit)
    if ours.env is None or theirs.env is None:  # refused: allowed where state can't be carried, and on both paths
        assert cls.EXPECT == "error" or cls.REFUSABLE, repr(ours.error or theirs.error)
        for run in (ours, theirs):
            assert run.env is None and isinstance(run.error, EnvError), repr(run.error)
            assert one_sentence(str(run.error)) and names_the_cause(cls, str(run.error)), str(run.error)
        OUTCOMES[path, num_envs] = "refused"
        return
    OUTCOMES[path, num_envs] = ours.path
    faults = []
    if cls.REPEATS and (different := difference(ours, theirs, exact=ours.path == "eager")):
        faults.append(f"the default is not the simulator: {different}")
    if cls.EXPECT == "error":
        faults.append("it was built, though its state of single environments can't be carried through resets")
    if cls.EXPECT in ("kernel", "eager") and ours.path != cls.EXPECT:
        faults.append(f"must be {cls.EXPECT}")
    if ours.path == "eager" and not (one_sentence(ours.why) and names_the_cause(cls, ours.why)):
        faults.append("why_eager is no sentence that names the cause")
    for run in (ours, theirs):
        late = run.steps < steps and not run.error  # it was not played to where it may raise
        if (isinstance(run.error, EnvError) != cls.RAISES and not late) or (
            run.error and not isinstance(run.error, EnvError)
        ):
            faults.append(f"on the path {run.path}: {run.error!r}")
        elif not run.error and run.steps == steps and cls.holds(run.log) == cls.UNSEEN:
            faults.append(f"on the path {run.path} this does not hold: {cls.holds.__doc__}")
    assert not faults, f"{'; '.join(faults)} (path {ours.path}; why_eager: {ours.why or 'nothing'})"


def test_each_says_what_is_expected():
    assert len(SCENARIOS) >= 110
    for cls in SCENARIOS.values():
        assert cls.EXPECT in EXPECTATIONS and cls.__doc__, cls


@pytest.mark.parametrize(
    "path",
    [
        f"tests.envs.kernel.zoo.{name}"
        for name in (
            "state.counters.OnInstance",
            "external.draws.NumpyGlobal",
            "code.branches.AnyReturns",
            "external.clocks.WallClock",
        )
    ],
    ids=short,
)
def test_a_kernel_that_is_insisted_on_is_refused_for_the_same_reason(path):
    SCENARIOS[path].restart()
    why = VmasEnv(path, num_envs=5, max_steps=50, seed=SEED).why_eager
    with pytest.raises(EnvError) as refusal:
        VmasEnv(path, num_envs=5, max_steps=50, seed=SEED, fast="kernel")
    assert why and why.rstrip(".") in str(refusal.value)


def test_counts(capsys):
    """Last in this file, so that the numbers can be read off: how many have kernels, are eager, are refused."""
    outcomes = Counter(OUTCOMES.values())
    with capsys.disabled():
        print(
            f"\nzoo: {len(SCENARIOS)} scenarios, {len(CASES)} runs: {outcomes['kernel']} by kernel, "
            f"{outcomes['eager']} eager, {outcomes['refused']} refused"
        )
    if len(OUTCOMES) == len(CASES):
        expected = Counter(SCENARIOS[path].EXPECT for path, _ in CASES)
        assert outcomes["kernel"] >= expected["kernel"] and outcomes["eager"] >= expected["eager"]
