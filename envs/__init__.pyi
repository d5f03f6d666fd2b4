"""What `from envs import …` gives, for type checkers and editors; at run time `__init__.py` imports it on demand."""

from envs.adapters.gymnasium_env import GymnasiumEnv as GymnasiumEnv
from envs.adapters.gymnasium_env import PettingZooEnv as PettingZooEnv
from envs.adapters.torchrl_env import FromTorchRL as FromTorchRL
from envs.adapters.vector_env import VectorEnv as VectorEnv
from envs.base import Env as Env
from envs.base import EnvError as EnvError
from envs.base import Transition as Transition
from envs.spec import ActionSpec as ActionSpec
from envs.spec import EnvSpec as EnvSpec
from envs.spec import GroupSpec as GroupSpec
from envs.vmas.env import VmasEnv as VmasEnv
