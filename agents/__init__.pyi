"""What `from agents import …` gives, for type checkers and editors; at run time `__init__.py` imports it on demand."""

from agents.building.algorithms import APG as APG
from agents.building.algorithms import IDDPG as IDDPG
from agents.building.algorithms import IPPO as IPPO
from agents.building.algorithms import IQL as IQL
from agents.building.algorithms import ISAC as ISAC
from agents.building.algorithms import MADDPG as MADDPG
from agents.building.algorithms import MAPPO as MAPPO
from agents.building.algorithms import MASAC as MASAC
from agents.building.algorithms import MATD3 as MATD3
from agents.building.algorithms import PQN as PQN
from agents.building.algorithms import PQN_VDN as PQN_VDN
from agents.building.algorithms import QMIX as QMIX
from agents.building.algorithms import SHAC as SHAC
from agents.building.algorithms import VDN as VDN
from agents.building.tasks import make_task as make_task
from agents.deploy.live_page import live_page as live_page
from agents.deploy.live_page import replay_page as replay_page
from agents.deploy.page_frame import show_page as show_page
from agents.policies.policy import Policy as Policy
