"""What a step asks of the outside: environment variables, files, other modules' variables."""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.envs.kernel.zoo.base import Zoo, flat
from tests.envs.kernel.zoo.external import settings_of_zoo

VARIABLE = "ZOO_PAY"
FOLDER = Path(tempfile.mkdtemp(prefix="zoo"))
(FOLDER / "pay.txt").write_text("2.5")
(FOLDER / "pay.json").write_text(json.dumps({"pay": 1.5, "late": [0.0] * 250 + [1.0] * 400}))


class VariableInStep(Zoo):
    """An environment variable that the step reads and nobody changes."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * float(os.environ.get(VARIABLE, "2"))


class VariableChanged(Zoo):
    """An environment variable that the step counts up."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        os.environ.pop(VARIABLE + "_N", None)

    def reward(self, agent):
        count = int(os.environ.get(VARIABLE + "_N", "0")) + 1
        os.environ[VARIABLE + "_N"] = str(count)
        return flat(agent, float(count > 200))


class VariableAtBuild(Zoo):
    """An environment variable that make_world reads."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = float(os.environ.get(VARIABLE, "3"))
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class FileInStep(Zoo):
    """A file that the step reads and nobody changes."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * float((FOLDER / "pay.txt").read_text())


class FileChanged(Zoo):
    """A file that the step reads and writes: a counter on disk."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        (FOLDER / "count.txt").write_text("0")

    def reward(self, agent):
        count = int((FOLDER / "count.txt").read_text()) + 1
        (FOLDER / "count.txt").write_text(str(count))
        return flat(agent, float(count > 200))


class FileAtBuild(Zoo):
    """A table that make_world reads from a JSON file, one entry of it used."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        with open(FOLDER / "pay.json") as file:
            self.pay = json.load(file)["pay"]
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class FileHandle(Zoo):
    """A schedule read line by line from a file that stays open."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        path = FOLDER / "schedule.txt"
        if not path.exists():
            path.write_text("0\n" * 250 + "1\n" * 600)
        self.file = open(path)  # noqa: SIM115 - that it stays open is the point
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, float(self.file.readline() or 0))


class Schedule(Zoo):
    """A schedule from a file, read by a count of steps."""

    EXPECT, CAUSE = "eager", "at"

    def make_world(self, batch_dim, device, **kwargs):
        self.late = json.loads((FOLDER / "pay.json").read_text())["late"]
        self.at = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.at += 1
        return flat(agent, self.late[self.at])


class ModuleByName(Zoo):
    """A variable of another module, read by `getattr(module, name)`."""

    EXPECT = "kernel"

    def reward(self, agent):
        return agent.state.pos[:, 0] * getattr(settings_of_zoo, "PAY")  # noqa: B009 - the way it is read is the point


class ModuleFromSys(Zoo):
    """A variable of another module, found by `sys.modules`, that a step counts up."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        settings_of_zoo.COUNT = 0

    def reward(self, agent):
        module = sys.modules[settings_of_zoo.__name__]
        module.COUNT += 1
        return flat(agent, float(module.COUNT > 200))


class HelperThatCounts(Zoo):
    """A helper in another module that counts its calls there."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        settings_of_zoo.TALLY.clear()

    def reward(self, agent):
        return flat(agent, float(settings_of_zoo.tally("reward") > 200))


class HelperClass(Zoo):
    """An object of a helper module with a counter inside."""

    EXPECT, CAUSE = "eager", r"meter\._read at settings_of_zoo.py"

    def make_world(self, batch_dim, device, **kwargs):
        self.meter = settings_of_zoo.Meter()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, self.meter.read())


class HelperSingleton(Zoo):
    """A helper module's own object with a counter inside."""

    EXPECT, CAUSE = "eager", r"METER\._read at settings_of_zoo.py"

    @classmethod
    def restart(cls):
        settings_of_zoo.METER.__init__()

    def reward(self, agent):
        return flat(agent, settings_of_zoo.METER.read())


class HelperPure(Zoo):
    """A helper in another module that only computes."""

    EXPECT = "kernel"

    def reward(self, agent):
        return settings_of_zoo.shaped(agent.state.pos)
