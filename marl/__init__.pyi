"""What `from marl import …` gives, for type checkers and editors; at run time `__init__.py` imports it on demand."""

from marl.callbacks import Callback as Callback
from marl.config.presets import preset as preset
from marl.core.errors import UserError as UserError
from marl.engine.trainer import Trainer as Trainer
from marl.launch.from_python import train as train
from marl.optim import OptimizerConfig as OptimizerConfig
from marl.optim import ScheduleConfig as ScheduleConfig
from marl.task import Task as Task
